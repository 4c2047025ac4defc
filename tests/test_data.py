"""Data by name, by folder and by file: what comes out, and what is said of what cannot."""

from __future__ import annotations

import gzip
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from interp.errors import DataError, UnknownName
from interp.training import data


def test_the_digits_are_split_once_and_for_all():
    train, test = data.load("digits"), data.load("digits", split="test")
    assert (len(train.x), len(test.x)) == (1500, 297)
    assert train.shape == (1, 8, 8)
    assert (train.classes, train.levels) == (10, 17)
    assert train.x.dtype == torch.float32
    assert train.label.dtype == torch.int64
    assert (float(train.x.min()), float(train.x.max())) == (-1.0, 1.0)
    grid = (train.x + 1) * 8
    assert torch.equal(grid, grid.round())  # 17 levels from -1 to 1, exact in binary
    again = data.load("digits")
    assert torch.equal(train.x, again.x)
    both = torch.cat([train.x, test.x]).flatten(1)
    from sklearn.datasets import load_digits

    everything = torch.from_numpy(load_digits().data).float() / 8 - 1
    assert torch.equal(both.sum(0), everything.sum(0))  # nothing lost, nothing twice


def write_idx(path, array):
    """The IDX format: magic 0, 0, type 8 (bytes), number of axes, sizes, values."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(head + array.tobytes())


@pytest.fixture
def mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, rows in (("train", 12), ("t10k", 5)):
        pixels = np.arange(rows * 784, dtype=np.uint8).reshape(rows, 28, 28)
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(rows, dtype=np.uint8) % 10)
    return tmp_path


def test_a_torchvision_set_is_read_from_its_root(mnist, monkeypatch):
    found = data.load("mnist", mnist)
    assert found.x.shape == (12, 1, 28, 28)
    assert (found.classes, found.levels) == (10, 256)
    pixels = torch.arange(12 * 784).reshape(12, 1, 28, 28) % 256
    torch.testing.assert_close(found.x, pixels / 127.5 - 1)
    assert found.label.tolist() == [*range(10), 0, 1]
    monkeypatch.setenv(data.ROOT, str(mnist))
    assert len(data.load("mnist", split="test").x) == 5


def test_a_torchvision_set_that_is_not_there_says_where_it_was_sought(tmp_path, monkeypatch):
    monkeypatch.delenv(data.ROOT, raising=False)
    with pytest.raises(DataError, match=r"--data-root FOLDER or set INTERP_DATA_ROOT"):
        data.load("mnist")
    with pytest.raises(DataError, match=rf"mnist is not in {tmp_path}.*MNIST/raw.*--data-root"):
        data.load("mnist", tmp_path)


def test_a_torchvision_set_that_is_damaged_is_reported(mnist):
    file = mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"mnist in .* is damaged"):
        data.load("mnist", mnist)
    file.write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(DataError, match=r"mnist in .* is damaged"):
        data.load("mnist", mnist)


@pytest.mark.skipif("INTERP_TEST_MNIST" not in os.environ, reason="needs the real MNIST")
def test_the_real_mnist():
    found = data.load("mnist", os.environ["INTERP_TEST_MNIST"])
    assert found.x.shape == (60_000, 1, 28, 28)
    # Published counts of the training labels (LeCun, Cortes, Burges).
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(found.label).tolist() == counts


def picture(path, mode="L", size=(5, 4), value=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("1", "L", "I;16") else (value, 0, 0)).save(path)


def test_a_folder_with_subfolders_has_labels(tmp_path):
    for name, count in (("b", 2), ("a", 3)):
        for k in range(count):
            picture(tmp_path / name / f"{k}.png", value=255 * k)
    (tmp_path / "notes.txt").write_text("not an image")
    found = data.load(str(tmp_path))
    assert found.x.shape == (5, 1, 4, 5)
    assert found.label.tolist() == [0, 0, 0, 1, 1]  # a, b
    assert (found.classes, found.levels) == (2, 256)
    assert float(found.x[0].max()) == -1.0
    assert float(found.x[1].min()) == 1.0


def test_a_flat_folder_of_mixed_pictures_is_in_colour(tmp_path):
    picture(tmp_path / "0.png", value=255)
    picture(tmp_path / "1.PNG", "RGB", value=255)
    found = data.load(str(tmp_path))
    assert found.x.shape == (2, 3, 4, 5)
    assert found.label is None
    assert found.x[1, :, 0, 0].tolist() == [1.0, -1.0, -1.0]


def test_folders_that_cannot_be_used_say_why(tmp_path):
    with pytest.raises(DataError, match="no image in"):
        data.load(str(tmp_path))
    picture(tmp_path / "0.png")
    picture(tmp_path / "1.png", size=(6, 4))
    with pytest.raises(DataError, match=r"1\.png is 6 x 4 but .*0\.png is 5 x 4"):
        data.load(str(tmp_path))
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        data.load(str(tmp_path))
    picture(tmp_path / "1.png", "I;16", value=1000)
    with pytest.raises(DataError, match="8 bits"):
        data.load(str(tmp_path))


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((6, 1, 4, 5), (1, 4, 5)), ((6, 4, 5), (1, 4, 5)), ((6, 4, 5, 3), (3, 4, 5)), ((6, 7), (7,))],
)
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_arrays_of_every_layout_become_rows_of_one_shape(tmp_path, shape, wanted, dtype):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    saved = values if dtype == "uint8" else values / 127.5 - 1
    np.savez(tmp_path / "a.npz", x=saved, label=np.arange(6))
    found = data.load(str(tmp_path / "a.npz"))
    assert found.shape == wanted
    assert found.x.dtype == torch.float32
    assert (found.classes, found.levels) == (6, 256 if dtype == "uint8" else None)
    moved = values.transpose(0, 3, 1, 2) if shape == (6, 4, 5, 3) else values
    want = torch.from_numpy(np.ascontiguousarray(moved)).float().reshape(6, *wanted) / 127.5 - 1
    torch.testing.assert_close(found.x, want, atol=1e-6, rtol=0)  # float32 of numbers below 1


def test_without_an_x_the_first_array_is_taken(tmp_path):
    np.savez(tmp_path / "a.npz", samples=np.zeros((2, 1, 3, 3), dtype=np.float32))
    found = data.load(str(tmp_path / "a.npz"))
    assert found.shape == (1, 3, 3)
    assert found.label is None
    assert set(found.columns) == {"x"}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no array"),
        ({"x": np.zeros(3)}, r"shape \(3,\)"),
        ({"x": np.zeros((0, 4))}, "at least one row"),
        ({"x": np.zeros((2, 4, 4), dtype=np.int64)}, "int64"),
        ({"x": np.full((2, 4, 4), 255.0)}, "run from 255 to 255"),
        ({"x": np.full((2, 4, 4), np.nan)}, "run from nan"),
        ({"x": np.zeros((2, 3)), "label": np.zeros(3, dtype=int)}, "one integer a row"),
        ({"x": np.zeros((2, 3)), "label": np.array([0.5, 1.0])}, "one integer a row"),
        ({"x": np.zeros((2, 3)), "label": np.array([-1, 0])}, "one integer a row"),
        ({"x": np.array([{}, {}])}, "cannot be read"),  # objects would have to be unpickled
    ],
)
def test_arrays_that_cannot_be_used_say_why(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        data.load(str(tmp_path / "a.npz"))


def test_files_that_cannot_be_read_say_so(tmp_path):
    with pytest.raises(DataError, match="not there"):
        data.load(str(tmp_path / "b.npz"))
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 3)))
    whole = (tmp_path / "a.npz").read_bytes()
    np.save(tmp_path / "bare.npy", np.zeros((20, 3)))
    bare = (tmp_path / "bare.npy").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], bare):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            data.load(str(tmp_path / "a.npz"))


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean fashion_mnist"):
        data.load("fashion_minst")
    with pytest.raises(UnknownName, match="train"):
        data.load("digits", split="training")

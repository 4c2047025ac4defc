"""Files that are whole or absent, and what is said of those that are neither."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import CheckpointError
from interp.training import checkpoint as files
from interp.training.checkpoint import Checkpoint


def made(step=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    parts = {
        "model": {"a.weight": torch.randn(2, 3, generator=g), "empty": torch.zeros(0)},
        "average": {"a.weight": torch.randn(2, 3, generator=g).bfloat16()},
        "optimizer": {"loss/0/step": torch.tensor(3.0), "n": torch.tensor([1, 2])},
    }
    return Checkpoint(step, "toy", parts, {"optimizer": {"loss": {"0": {"x": 1e-300}}}})


def same(a, b):
    assert (a.step, a.family, a.extra) == (b.step, b.family, b.extra)
    assert a.parts.keys() == b.parts.keys()
    for name, tensors in a.parts.items():
        assert tensors.keys() == b.parts[name].keys()
        for key, tensor in tensors.items():
            assert tensor.dtype == b.parts[name][key].dtype
            assert torch.equal(tensor, b.parts[name][key])


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    path = files.save(tmp_path / "c", made(), keep=3)
    same(files.load(path), made())
    assert sorted(p.name for p in path.iterdir()) == [
        "average.safetensors", "checkpoint.json", "model.safetensors", "optimizer.safetensors",
    ]  # fmt: skip


def test_tensors_that_share_memory_are_written_each_for_itself(tmp_path):
    whole = torch.arange(6.0)
    files.write_tensors(
        tmp_path / "t", {"a": whole, "b": whole[2:4], "c": whole.reshape(2, 3).T}, {}
    )
    tensors, _ = files.read_tensors(tmp_path / "t")
    assert torch.equal(tensors["b"], whole[2:4])
    assert torch.equal(tensors["c"], whole.reshape(2, 3).T)


def test_the_last_few_are_kept(tmp_path):
    for step in (0, 5, 10, 15, 100_000_000):
        files.save(tmp_path, made(step), keep=2)
    assert [files.load(p).step for p in files.found(tmp_path)] == [15, 100_000_000]
    assert files.load_last(tmp_path).step == 100_000_000


def test_a_step_written_again_replaces_what_was_there(tmp_path):
    files.save(tmp_path, made(5, seed=1), keep=2)
    files.save(tmp_path, made(5, seed=2), keep=2)
    same(files.load_last(tmp_path), made(5, seed=2))


def test_nothing_yet_is_no_error(tmp_path):
    assert files.load_last(tmp_path) is None
    assert files.load_last(tmp_path / "absent") is None


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_damage_goes_unseen(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    path = files.save(folder, made(), keep=1)
    name = data.draw(st.sampled_from(sorted(p.name for p in path.iterdir())))
    content = bytearray((path / name).read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:where]
    else:
        content[where] ^= 1 << data.draw(st.integers(0, 7))
    (path / name).write_bytes(content)
    try:
        found = files.load(path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right
    else:
        # A flipped bit may fall where nothing is said: in white space of the JSON or the header,
        # or in a value of the JSON that is then another valid value. No tensor may differ.
        for part, tensors in found.parts.items():
            for key, tensor in tensors.items():
                assert torch.equal(tensor, made().parts[part][key])


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    path = files.save(tmp_path, made(), keep=1)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        files.load(path)


def test_another_schema_is_named(tmp_path):
    path = files.save(tmp_path, made(), keep=1)
    about = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(about | {"schema": 99}))
    with pytest.raises(CheckpointError, match=r"schema 99.*reads schema 1"):
        files.load(path)


def test_a_damaged_last_one_names_the_good_one_before(tmp_path):
    for step in (5, 10, 15):
        files.save(tmp_path, made(step), keep=3)
    (tmp_path / "step-00000010" / "model.safetensors").write_bytes(b"")
    file = tmp_path / "step-00000015" / "average.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"damaged.*step-00000005, is good.*delete .*15"):
        files.load_last(tmp_path)


def test_a_pickle_is_damage_and_is_not_unpickled(tmp_path):
    path = files.save(tmp_path, made(), keep=1)
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(touched),)

    torch.save(Evil(), path / "model.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        files.load(path)
    assert not touched.exists()


@pytest.mark.parametrize("call", ["fsync", "replace", "rename"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, call):
    files.save(tmp_path / "c", made(5), keep=3)
    files.write_bytes(tmp_path / "model", b"old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    home = os if call == "fsync" else type(tmp_path)
    monkeypatch.setattr(home, call, full)
    if call != "replace":
        with pytest.raises(OSError, match="No space left"):
            files.save(tmp_path / "c", made(10), keep=3)
    if call != "rename":
        with pytest.raises(OSError, match="No space left"):
            files.write_bytes(tmp_path / "model", b"new")
    monkeypatch.undo()
    same(files.load_last(tmp_path / "c"), made(5))
    assert (tmp_path / "model").read_bytes() == b"old"
    left = {p.name for p in [*tmp_path.iterdir(), *(tmp_path / "c").iterdir()]}
    assert left == {"c", "model", "step-00000005"}  # no half-written file stays behind

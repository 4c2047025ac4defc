"""Data by name: embedded digits, torchvision's sets, a folder of images, a file of arrays.

Images come out as float (n, c, h, w) in [-1, 1], with labels where there are any.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, UnknownName

ROOT = "INTERP_DATA_ROOT"

#: Sets that torchvision reads, by our names.
TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_TEST_DIGITS = 297


@dataclass(frozen=True)
class Images:
    """A data set in memory.

    Attributes:
        name: what it was asked for as.
        x: (n, c, h, w) in [-1, 1]; points (n, d) where a file holds those.
        label: (n,) integers, or None.
        classes: how many labels there are, or None.
        levels: how many grey levels the images have, or None where that is not known.
        x0: like x, where a bridge to each image begins, or None.
    """

    name: str
    x: Tensor
    label: Tensor | None = None
    classes: int | None = None
    levels: int | None = None
    x0: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return tuple(self.x.shape[1:])

    @property
    def columns(self) -> dict[str, Tensor]:
        """As the trainer takes it."""
        columns = {"x": self.x, "label": self.label, "x0": self.x0}
        return {name: column for name, column in columns.items() if column is not None}


def load(spec: str, root: str | Path | None = None, split: str = "train") -> Images:
    """The data set that ``spec`` names.

    Args:
        spec: "digits" (scikit-learn's 1797 handwritten digits, 8 x 8, 17 levels: 1500 to train on
            and 297 to test on), a torchvision set by name, a folder of images (its subfolders, if
            any, are the labels), or an .npz file with an array "x", or else its first array, and
            perhaps "label", and "x0" of x's shape for what learns from pairs.
        root: where torchvision's sets are; None asks the environment variable INTERP_DATA_ROOT.
        split: "train" or "test".

    Raises:
        UnknownName: neither a name nor a path that exists; or a split that does not exist.
        DataError: not there, damaged, or not images; says what to do.
    """
    if split not in ("train", "test"):
        raise UnknownName.of("split", split, ("train", "test"))
    if spec == "digits":
        return _digits(split)
    if spec in TORCHVISION:
        return _torchvision(spec, root, split)
    path = Path(spec).expanduser()
    if path.suffix != ".npz" and not path.is_dir():
        known = UnknownName.of("data set", spec, ["digits", *TORCHVISION])
        raise UnknownName(f"{known} Or give a folder of images, or a file ending in .npz.")
    if split == "test":
        raise DataError(f"{spec} has no test split. Ask for it whole.")
    return _npz(path) if path.suffix == ".npz" else _folder(path)


def has_test_split(spec: str) -> bool:
    """Whether ``spec`` names a data set of which a part is held out."""
    return spec == "digits" or spec in TORCHVISION


def from_bytes(pixels: NDArray[np.uint8] | Tensor, levels: int = 256) -> Tensor:
    """Grey levels 0 ... levels - 1 as float32 in [-1, 1]: 2 k / (levels - 1) - 1."""
    return torch.as_tensor(pixels).to(torch.float32) * (2 / (levels - 1)) - 1


def _digits(split: str) -> Images:
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    # A legacy generator, because numpy promises that its numbers never change.
    order = np.random.RandomState(0).permutation(len(pixels))
    rows = order[:-_TEST_DIGITS] if split == "train" else order[-_TEST_DIGITS:]
    x = from_bytes(torch.from_numpy(pixels[rows]), 17).reshape(-1, 1, 8, 8)
    return Images("digits", x, torch.from_numpy(target[rows]).long(), classes=10, levels=17)


def _torchvision(name: str, root: str | Path | None, split: str) -> Images:
    import torchvision

    kind = getattr(torchvision.datasets, TORCHVISION[name])
    where = root or os.environ.get(ROOT)
    fetch = f"torchvision.datasets.{TORCHVISION[name]}(FOLDER, download=True)"
    if not where:
        raise DataError(
            f"no folder was given to look for {name} in. Give --data-root FOLDER or set {ROOT}; "
            f"{fetch} in Python fetches the data."
        )
    try:
        found = kind(root=str(where), train=split == "train", download=False)
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
        if isinstance(error, FileNotFoundError) or "not found" in str(error):
            raise DataError(
                f"{name} is not in {where} (in torchvision's layout, {where}/{_layout(kind)}). Give "
                f"the folder that has it as --data-root or in {ROOT}; {fetch} in Python fetches it."
            ) from error
        raise DataError(
            f"{name} in {where} is damaged: {error}. Fetch it anew by {fetch}."
        ) from error
    pixels, target = torch.as_tensor(found.data), torch.as_tensor(found.targets).long()
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return Images(name, from_bytes(pixels), target, classes=len(found.classes), levels=256)


def _layout(kind: Any) -> str:
    """The folder below the root that a torchvision set keeps its files in."""
    return str(getattr(kind, "base_folder", f"{kind.__name__}/raw"))


def _folder(path: Path) -> Images:
    names = sorted(p.name for p in path.iterdir() if p.is_dir() and _images_in(p))
    files = [(file, k) for k, name in enumerate(names) for file in _images_in(path / name)]
    files = files or [(file, 0) for file in _images_in(path)]
    if not files:
        raise DataError(
            f"there is no image in {path} nor in its subfolders. Give a folder of files ending in "
            f"{', '.join(_SUFFIXES)}."
        )
    pixels = [_read(file) for file, _ in files]
    grey = all(p.ndim == 2 for p in pixels)
    pixels = [p if grey or p.ndim == 3 else np.stack([p] * 3, axis=-1) for p in pixels]
    for (file, _), p in zip(files, pixels, strict=True):
        if p.shape != pixels[0].shape:
            raise DataError(
                f"{file} is {p.shape[1]} x {p.shape[0]} but {files[0][0]} is {pixels[0].shape[1]} x "
                f"{pixels[0].shape[0]}. Bring all images to one size."
            )
    stacked = np.stack(pixels)
    x = from_bytes(
        stacked[:, None] if grey else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
    )
    label = torch.tensor([k for _, k in files]) if names else None
    return Images(str(path), x, label, classes=len(names) or None, levels=256)


def _images_in(folder: Path) -> Sequence[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())


def _read(file: Path) -> NDArray[np.uint8]:
    """Grey (h, w) or colour (h, w, 3) bytes."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{file} has mode {image.mode}. Give images of 8 bits a channel.")
            grey = image.mode in ("1", "L", "LA")
            return np.asarray(image.convert("L" if grey else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(
            f"{file} cannot be read as an image: {error}. Remove or repair it."
        ) from error


def _npz(path: Path) -> Images:
    if path.exists() and not zipfile.is_zipfile(path):  # numpy would take a pickle or a bare array
        raise DataError(
            f"{path} cannot be read: it is no .npz archive. Save it by numpy.savez with an array 'x'."
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = list(arrays.files)
            if not names:
                raise DataError(f"{path} holds no array. Save the images as an array 'x'.")
            values = np.asarray(arrays["x" if "x" in names else names[0]])
            label = np.asarray(arrays["label"]) if "label" in names else None
            start = np.asarray(arrays["x0"]) if "x0" in names else None
    except FileNotFoundError:
        raise DataError(f"{path} is not there. Check the path.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read: {error}. Save it by numpy.savez with an array 'x' of numbers."
        ) from error
    x, levels = _as_images(path, values)
    x0 = None if start is None else _as_images(path, start)[0]
    if x0 is not None and x0.shape != x.shape:
        raise DataError(
            f"x0 in {path} is of shape {tuple(x0.shape)} and x of {tuple(x.shape)}. Give a point for each."
        )
    if label is None:
        return Images(str(path), x, levels=levels, x0=x0)
    if label.shape != (len(x),) or not np.issubdtype(label.dtype, np.integer) or label.min() < 0:
        raise DataError(
            f"label in {path} is {label.dtype} of shape {label.shape} for {len(x)} rows. Give one "
            "integer a row, zero or more."
        )
    labels = torch.from_numpy(label.astype(np.int64))
    return Images(str(path), x, labels, classes=int(label.max()) + 1, levels=levels, x0=x0)


def _as_images(path: Path, values: NDArray[Any]) -> tuple[Tensor, int | None]:
    """float32 (n, c, h, w), or points (n, d), and the number of grey levels if it is known."""
    if values.ndim not in (2, 3, 4) or values.shape[0] == 0:
        raise DataError(
            f"the array in {path} has shape {values.shape}. Give (n, c, h, w), (n, h, w, c), "
            "(n, h, w) or, for points, (n, d), with at least one row."
        )
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[1] not in (1, 3) and values.shape[-1] in (1, 3):
        values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    if values.dtype == np.uint8:
        return from_bytes(values), 256
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"the array in {path} is {values.dtype}. Give bytes, or floats in [-1, 1].")
    low, high = float(values.min()), float(values.max())
    if values.ndim == 4 and not (low >= -1 and high <= 1):
        raise DataError(
            f"the images in {path} run from {low:g} to {high:g}. Give bytes, or floats in [-1, 1]."
        )
    return torch.from_numpy(values.astype(np.float32)), None

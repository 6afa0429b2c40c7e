"""Real data for demonstrations, and how it is dealt out to clients. Data handling only: nothing here protects anybody.

Rules:
- Data comes from installed packages, never from the network, and is compared with a known digest before it is used.
- Scaling uses public constants (the range of a pixel), never a statistic of the data.
- Every shuffle is a function of (data, seed) alone, through SHAKE-256: the same on every machine and numpy version.
  Seeds are public. Secrets and noise come from the `rand` seam elsewhere, never from here.
"""

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Float32Matrix = NDArray[np.float32]
Int64Vector = NDArray[np.int64]

_DIGITS_SHAPE = (1797, 64)
_DIGITS_COUNTS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
_DIGITS_PIXEL_RANGE = 16
_DIGITS_SHA256 = "f6d9e39f37dc45d327f6db33428ee58970ccceabb2535a5c179de35886b70443"


class DatasetError(RuntimeError):
    """An installed data set is not the one that the published figures were measured on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Labelled examples of a classification task.

    Attributes:
        name: What the data is called in reports.
        features: float32[n, d], one example a row.
        labels: int64[n], each in [0, classes).
        classes: Number of classes.
        image_shape: Shape of one example as a picture, with product d; None if it is not a picture.
        sites: Names of the places the examples come from, where the data says so.
        site: int64[n], the place of each example, an index into `sites`; None where the data does not say.

    Raises:
        ValueError: Shapes, dtypes or label range disagree.
    """

    name: str
    features: Float32Matrix
    labels: Int64Vector
    classes: int
    image_shape: tuple[int, ...] | None = None
    sites: tuple[str, ...] = ()
    site: Int64Vector | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.features.dtype != np.float32:
            raise ValueError(f"features must be float32[n, d], not {self.features.dtype}{list(self.features.shape)}")
        if self.labels.shape != self.features.shape[:1] or self.labels.dtype != np.int64:
            raise ValueError(
                f"labels must be int64[{len(self.features)}], not {self.labels.dtype}{list(self.labels.shape)}"
            )
        _check_labels(self.labels)
        if self.labels.size and self.labels.max() >= self.classes:
            raise ValueError(f"label {self.labels.max()} is not below classes = {self.classes}")
        if self.site is not None and (
            self.site.shape != self.labels.shape or not np.isin(self.site, range(len(self.sites))).all()
        ):
            raise ValueError(f"site must be int64[{len(self.labels)}] of indices below {len(self.sites)}")
        if self.image_shape is not None and math.prod(self.image_shape) != self.features.shape[1]:
            raise ValueError(f"image_shape {self.image_shape} does not hold {self.features.shape[1]} features")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Int64Vector) -> "Dataset":
        """The examples at `indices` (int64[m]), in that order, as a new data set."""
        site = None if self.site is None else self.site[indices]
        return replace(self, features=self.features[indices], labels=self.labels[indices], site=site)

    def by_site(self) -> "dict[str, Dataset]":
        """The examples of each site, by its name; empty where the data names no sites."""
        if self.site is None:
            return {}
        return {name: self.take(np.flatnonzero(self.site == index)) for index, name in enumerate(self.sites)}


def load_digits() -> Dataset:
    """The 1,797 handwritten 8x8 digits that scikit-learn carries (UCI, 43 writers), pixels scaled to [0, 1].

    Returns:
        A data set with features float32[1797, 64] and ten classes.

    Raises:
        ImportError: scikit-learn is not installed.
        DatasetError: The installed copy differs from the known one.
    """
    try:
        from sklearn import datasets as sklearn_datasets
    except ImportError as missing:
        raise ImportError("load_digits() reads scikit-learn's copy: pip install 'secagg[data]'") from missing
    pixels, labels = sklearn_datasets.load_digits(return_X_y=True)
    return _checked_digits(pixels, labels)


def _checked_digits(pixels: NDArray[np.float64], labels: Int64Vector) -> Dataset:
    """Compare shape, class counts and digest with the known ones, then scale."""
    if pixels.shape != _DIGITS_SHAPE:
        raise DatasetError(f"digits have shape {pixels.shape}, not {_DIGITS_SHAPE}")
    counts = tuple(np.bincount(labels).tolist())
    if counts != _DIGITS_COUNTS:
        raise DatasetError(f"digits have class counts {counts}, not {_DIGITS_COUNTS}")
    digest = hashlib.sha256(pixels.astype("<f8").tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    if digest != _DIGITS_SHA256:
        raise DatasetError(f"digits have SHA-256 {digest}, not {_DIGITS_SHA256}")
    features = (pixels / _DIGITS_PIXEL_RANGE).astype(np.float32)
    return Dataset(
        name="digits", features=features, labels=labels.astype(np.int64), classes=len(counts), image_shape=(8, 8)
    )


def split(dataset: Dataset, *, test_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Shuffle and cut into (training, test); the test part has `round(n * test_fraction)` examples.

    Raises:
        ValueError: One of the two parts would be empty.
    """
    held_out = round(len(dataset) * test_fraction)
    if not 0 < held_out < len(dataset):
        raise ValueError(f"test_fraction = {test_fraction} of {len(dataset)} examples leaves an empty part")
    order = _shuffle(len(dataset), purpose="split", seed=seed)
    return dataset.take(order[held_out:]), dataset.take(order[:held_out])


def dirichlet_partition(
    labels: Int64Vector, *, clients: int, alpha: float, seed: int, minimum: int
) -> tuple[Int64Vector, ...]:
    """Deal examples to clients whose class proportions differ, the usual stand-in for non-identical clients.

    For each class, the shares of the clients follow Dirichlet(alpha, ..., alpha) and every example draws its owner from
    them. Small alpha: each class sits with few clients; large alpha: all clients alike. The shares themselves are never
    drawn. A Pólya urn (Blackwell and MacQueen, 1973) has the same law: an example goes to a fresh uniform client with
    probability clients * alpha / (clients * alpha + seen), and otherwise follows an earlier example of its class.

    Clients left below `minimum` are then filled with random examples of whoever has most, so the law is exact only if
    nobody fell short.

    Args:
        labels: int64[n], non-negative.
        clients: Number of parts.
        alpha: Concentration, positive and finite.
        seed: Public seed; equal arguments give equal parts.
        minimum: Smallest number of examples that a client gets.

    Returns:
        One increasing int64 index vector per client: disjoint, and together all of `range(n)`.

    Raises:
        ValueError: An argument is out of range, or `clients * minimum` exceeds n.
    """
    _check_labels(labels)
    if clients < 1:
        raise ValueError(f"clients = {clients} is below 1")
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha = {alpha} is not positive and finite")
    if not 0 <= clients * minimum <= len(labels):
        raise ValueError(f"{clients} clients with a minimum of {minimum} need more than the {len(labels)} examples")
    uniforms = (_words(len(labels), purpose="dirichlet", seed=seed) >> np.uint64(11)) * 2.0**-53
    fresh = clients * alpha
    owners_by_class: dict[int, list[int]] = {}
    parts: list[list[int]] = [[] for _ in range(clients)]
    for index in _shuffle(len(labels), purpose="deal", seed=seed).tolist():
        earlier = owners_by_class.setdefault(int(labels[index]), [])
        point = float(uniforms[index]) * (fresh + len(earlier))
        # The min() guards against a float that rounds up to the end of its interval.
        owner = (
            earlier[min(int(point - fresh), len(earlier) - 1)]
            if earlier and point >= fresh
            else min(int(point / alpha), clients - 1)
        )
        earlier.append(owner)
        parts[owner].append(index)
    for part in parts:
        while len(part) < minimum:
            part.append(max(parts, key=len).pop())
    return tuple(np.array(sorted(part), dtype=np.int64) for part in parts)


def _check_labels(labels: Int64Vector) -> None:
    """Refuse anything but a vector of non-negative integers."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be an integer vector, not {labels.dtype}{list(labels.shape)}")
    if labels.size and labels.min() < 0:
        raise ValueError(f"label {labels.min()} is negative")


def _words(count: int, *, purpose: str, seed: int) -> NDArray[np.uint64]:
    """`count` public pseudo-random words; purposes never share a stream."""
    stream = hashlib.shake_256(f"secagg/datasets/{purpose}/{seed}".encode())
    return np.frombuffer(stream.digest(8 * count), dtype="<u8").astype(np.uint64)


def _shuffle(count: int, *, purpose: str, seed: int) -> Int64Vector:
    """A pseudo-random order of range(count)."""
    return np.argsort(_words(count, purpose=purpose, seed=seed), kind="stable").astype(np.int64)

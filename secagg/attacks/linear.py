"""Exact inversion of a fully-connected layer: whole small batches from one gradient or one exact sum.

Rules:

1. The weight gradient of a layer is a product, `signals^T inputs`, of rank b for b pictures. One picture is read off as
   weight gradient over bias gradient.
2. For more, the layer must be followed by ReLU: then each column of `signals` is zero wherever its picture leaves a
   unit silent, about half of the time. Directions of the column space that are that sparse are the columns themselves;
   they are found as null vectors of random sets of b - 1 rows.
3. A sum over clients is the gradient of all their pictures together: while there are few pictures, masking hides who
   sent which, and nothing else. Nothing is planted; the model is honest.
4. The time grows as 2^b. Noise ends it: the rank is no longer b, and no direction is sparse.

Source: Dimitrov et al. 2024 ("SPEAR: Exact Gradient Inversion of Batches in Federated Learning", arXiv 2403.03945);
one picture: Phong et al. 2018, also Geiping et al. 2020, proposition 3.1.

Example::

    update = [before - after for before, after in zip(sent, received)]  # weight and bias of the first layer come first
    found = invert_linear(update, LinearKnowledge(units=200, inputs=784, images=4), rand=os.urandom)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dp import FloatMatrix, FloatVector, RandomBytes

from .chance import order
from .views import Observed, flat

MAX_IMAGES = 12  # beyond, a set of b - 1 rows that are all silent for one picture is not found in reasonable time

_TRIES_AT_A_TIME = 512
_EXTRA_ZEROS = 3  # beyond the b - 1 that come for free
_KEPT = 200  # sparsest directions remembered
_SAME = 1 - 1e-6  # cosine of two finds of one direction
_SILENT = 1e-4  # of the largest entry of a column: what rounding to the ring leaves of a zero


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearKnowledge:
    """Where the layer's gradient lies, and how many pictures are behind it.

    Attributes:
        units: m, outputs of the layer.
        inputs: d, inputs of the layer.
        images: b, pictures in the sum.
        offset: where the weight's gradient starts in the view; the bias's follows it.

    Raises:
        ValueError: a number is below 1, or there are too many pictures.
    """

    units: int
    inputs: int
    images: int
    offset: int = 0

    def __post_init__(self) -> None:
        if min(self.units, self.inputs) < 1 or self.offset < 0:
            raise ValueError(f"units = {self.units}, inputs = {self.inputs} and offset = {self.offset} are no layer")
        most = min(MAX_IMAGES, self.units, self.inputs)
        if not 1 <= self.images <= most:
            raise ValueError(f"images must be in [1, {most}] for this layer, got {self.images}")


def invert_linear(view: Observed, knowledge: LinearKnowledge, *, rand: RandomBytes, tries: int = 40_000) -> FloatMatrix:
    """The inputs of the layer.

    Args:
        view: the gradient, summed over the pictures, or any multiple of it.
        knowledge: the layer.
        rand: bytes that choose the sets of rows.
        tries: sets of rows that are tried.

    Returns:
        float64[m, d], m <= `images`: as many inputs as were found, in no order.

    Raises:
        ValueError: the view is too short for the layer.
    """
    units, inputs, images, start = knowledge.units, knowledge.inputs, knowledge.images, knowledge.offset
    vector = flat(view)
    if len(vector) < start + units * (inputs + 1):
        raise ValueError(f"the view has {len(vector)} coordinates, the layer ends at {start + units * (inputs + 1)}")
    weights = vector[start : start + units * inputs].reshape(units, inputs)
    biases = vector[start + units * inputs : start + units * (inputs + 1)]
    left, singular, right = np.linalg.svd(weights, full_matrices=False)
    left, right = left[:, :images], singular[:images, None] * right[:images]

    columns = _sparse_columns(left, tries, rand) if images > 1 else np.ones((1, 1))
    if not len(columns):
        return np.empty((0, inputs))
    # signals = left @ mixing up to the length of each column; the bias gradient, the sum of the columns, gives lengths.
    mixing = columns.T
    lengths = np.linalg.lstsq(left @ mixing, biases, rcond=None)[0]
    lengths[lengths == 0] = 1.0
    found: FloatMatrix = np.linalg.pinv(mixing * lengths) @ right
    return found


def _sparse_columns(left: FloatMatrix, tries: int, rand: RandomBytes) -> FloatMatrix:
    """float64[c, b], c <= b: mixing vectors of the sparsest, linearly independent directions that were found."""
    images = left.shape[1]
    largest = np.abs(left).max()
    active = np.flatnonzero(np.abs(left).max(axis=1) > _SILENT * largest)  # silent for all pictures: says nothing
    if len(active) < images:
        return np.empty((0, images))
    known, zeros, hits = np.empty((0, images)), np.empty(0, np.int64), np.empty(0, np.int64)
    per_shuffle = max(len(active) // (images - 1), 1)
    for _ in range(-(-tries // _TRIES_AT_A_TIME)):
        sets = np.concatenate(
            [
                active[order(len(active), rand=rand)][: per_shuffle * (images - 1)].reshape(per_shuffle, images - 1)
                for _ in range(-(-_TRIES_AT_A_TIME // per_shuffle))
            ]
        )
        # The null vector of each (b - 1) x b block is its last right singular vector.
        mixing = np.linalg.svd(left[sets])[2][:, -1, :]
        size = np.abs(left @ mixing.T)
        silent = (size[active] < _SILENT * size.max(axis=0)).sum(axis=0)
        sparse = silent >= images - 1 + _EXTRA_ZEROS
        known = np.concatenate([known, mixing[sparse]])
        zeros = np.concatenate([zeros, silent[sparse]])
        hits = np.concatenate([hits, np.ones(sparse.sum(), np.int64)])
        if len(known):
            # Finds of one direction become one; chance finds none twice.
            same = np.abs(known @ known.T) > _SAME
            first = same.argmax(axis=1)
            hits = np.bincount(first, weights=hits, minlength=len(known)).astype(np.int64)
            keep = np.flatnonzero(first == np.arange(len(known)))
            keep = keep[np.argsort(-zeros[keep], kind="stable")][:_KEPT]
            known, zeros, hits = known[keep], zeros[keep], hits[keep]
        columns = _independent(known[hits > 1], images)
        if len(columns) == images:
            return columns
    return _independent(known, images)


def _independent(candidates: FloatMatrix, images: int) -> FloatMatrix:
    """The first candidates, each of which adds a dimension."""
    chosen: list[FloatVector] = []
    for candidate in candidates:
        if np.linalg.matrix_rank(np.array([*chosen, candidate]), tol=1e-3) == len(chosen) + 1:
            chosen.append(candidate)
        if len(chosen) == images:
            break
    return np.array(chosen).reshape(-1, images)

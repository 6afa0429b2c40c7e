"""Fewer coordinates a round: everybody sends the same random ones, and what was left out is not forgotten.

A masked sum is linear, so a linear map on both sides fits it: all clients keep the same k of d coordinates, drawn
anew in each round from a public seed; the server puts the mean back in their places. What a client did not send stays
with it and is added to its next update (error feedback), so that in the long run every coordinate arrives.

Rules:

- The choice depends on nothing but public numbers, so privacy is that of the vector that is sent: it is clipped and
  noised as any other.
- What is left out is the client's own memory and never leaves it. It belongs to one client over all rounds.
- Clip norms shrink with the vector: a random k of d coordinates has about sqrt(k/d) of the norm.

Sources: Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018; Karimireddy et al., "Error Feedback Fixes
SignSGD and other Gradient Compression Schemes", ICML 2019.

Example:
    >>> sketch = RandomCoordinates({"w": np.zeros(8, np.float32)}, keep=0.25, seed=b"round 1")
    >>> sent = sketch.compress({"w": np.arange(8, dtype=np.float32)})
    >>> sent["kept"].size, int((sketch.restore(sent)["w"] != 0).sum()) <= 2
    (2, True)
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from .layout import Arrays, Layout

NAME = "kept"


class RandomCoordinates:
    """The coordinates of one round.

    Args:
        like: arrays with the names, shapes and dtypes of an update.
        keep: share of the coordinates that is sent, in (0, 1].
        seed: public and fresh for each round, such as the application's name and the number of the round.

    Attributes:
        like: what is sent instead: one float32 array of k coordinates, the layout of the configuration.

    Raises:
        ValueError: `keep` is out of range.
    """

    def __init__(self, like: Arrays, *, keep: float, seed: bytes) -> None:
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {keep!r}")
        self._layout = Layout.of(like)
        count = math.ceil(keep * self._layout.length)
        stream = hashlib.shake_256(b"secagg/v1/sketch" + len(seed).to_bytes(8, "big") + seed)
        words = np.frombuffer(stream.digest(8 * self._layout.length), dtype="<u8")
        self._kept = np.sort(np.argpartition(words, count - 1)[:count])
        self.like: dict[str, NDArray[np.float32]] = {NAME: np.zeros(count, dtype=np.float32)}

    def compress(self, update: Arrays) -> dict[str, NDArray[np.float32]]:
        """The kept coordinates of an update.

        Raises:
            UnsafeUpdateError: the update does not match the layout.
        """
        return {NAME: self._layout.flatten(update)[self._kept].astype(np.float32)}

    def restore(self, mean: Arrays) -> dict[str, NDArray[np.floating]]:
        """The named arrays of a mean of compressed updates; zero where nothing was sent."""
        flat = np.zeros(self._layout.length)
        flat[self._kept] = np.asarray(mean[NAME], dtype=np.float64)
        return self._layout.unflatten(flat)


class ErrorFeedback:
    """What one client has not sent yet.

    Example: `sent = memory.compress(update, sketch)` in every round, instead of `sketch.compress(update)`.
    """

    def __init__(self) -> None:
        self._left: dict[str, NDArray[np.float64]] = {}

    def compress(self, update: Arrays, sketch: RandomCoordinates) -> dict[str, NDArray[np.float32]]:
        """The kept coordinates of the update and of all that was left out before; remembers the rest."""
        whole = {
            name: (np.asarray(array) + self._left.get(name, 0.0)).astype(np.asarray(array).dtype)
            for name, array in update.items()
        }
        sent = sketch.compress(whole)
        arrived = sketch.restore(sent)
        self._left = {name: np.asarray(whole[name] - arrived[name], dtype=np.float64) for name in whole}
        return sent

"""Named arrays and one flat vector: the order, shapes and dtypes that everybody agrees on.

The layout's digest is part of the round's binding, so two clients whose models differ in a single shape derive
different masks and nothing opens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dp import UnsafeUpdateError

Arrays = Mapping[str, ArrayLike]
FloatVector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One named array: its shape and its floating-point dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """The named arrays of an update, in the order in which they are laid into one vector.

    Example:
        >>> layout = Layout.of({"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)})
        >>> layout.length
        8
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, like: Arrays) -> Layout:
        """The layout of arrays such as `like`: names, shapes and dtypes; values do not matter.

        Raises:
            ValueError: no array, an empty one, or one that is not of a floating-point dtype.
        """
        entries = []
        for name, value in like.items():
            array = np.asarray(value)
            if array.dtype.kind != "f":
                raise ValueError(
                    f"array {name!r} has dtype {array.dtype}: only floating-point arrays can be averaged, leave it out"
                )
            if array.size == 0:
                raise ValueError(f"array {name!r} is empty")
            entries.append(Entry(name=name, shape=array.shape, dtype=array.dtype.name))
        if not entries:
            raise ValueError("a layout needs at least one array")
        return cls(tuple(entries))

    @property
    def length(self) -> int:
        """d, the number of coordinates of the flat vector."""
        return sum(entry.size for entry in self.entries)

    def flatten(self, update: Arrays) -> FloatVector:
        """Lays the arrays of one update into float64[length].

        Raises:
            UnsafeUpdateError: a name is missing or unknown, or a shape or dtype differs.
        """
        return np.concatenate([array.ravel() for array in self._arrays(update, ())], dtype=np.float64)

    def flatten_records(self, update: Arrays) -> NDArray[np.float64]:
        """Lays per-record arrays, each with one leading record axis, into float64[records, length].

        Raises:
            UnsafeUpdateError: as for `flatten`, or the arrays disagree in the number of records.
        """
        _check_mapping(update)
        first = np.asarray(update.get(self.entries[0].name, ()))
        records = first.shape[0] if first.ndim else 0
        rows = [
            array.reshape(records, entry.size)
            for entry, array in zip(self.entries, self._arrays(update, (records,)), strict=True)
        ]
        return np.concatenate(rows, axis=1, dtype=np.float64)

    def unflatten(self, vector: FloatVector) -> dict[str, NDArray[np.floating]]:
        """The named arrays of a flat vector, in their own dtypes.

        Raises:
            ValueError: the vector is not of `length`.
        """
        if vector.shape != (self.length,):
            raise ValueError(f"the vector must have {self.length} coordinates, got shape {vector.shape}")
        arrays, start = {}, 0
        for entry in self.entries:
            part = vector[start : start + entry.size]
            arrays[entry.name] = part.reshape(entry.shape).astype(entry.dtype)
            start += entry.size
        return arrays

    def model_digest(self, model: Arrays | None) -> bytes:
        """SHA-256 of the model that a round starts from: its values in layout order. Without a model, of nothing."""
        state = sha256(b"secagg/v1/model")
        if model is not None:
            for array in self._arrays(model, ()):
                state.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return state.digest()

    def to_dict(self) -> list[dict[str, object]]:
        """Plain JSON types, in order."""
        return [{"name": entry.name, "shape": list(entry.shape), "dtype": entry.dtype} for entry in self.entries]

    @classmethod
    def from_dict(cls, data: list[dict[str, object]]) -> Layout:
        """The inverse of `to_dict`."""
        return cls.of({str(item["name"]): np.empty(item["shape"], dtype=str(item["dtype"])) for item in data})

    def digest(self) -> bytes:
        """SHA-256 over the canonical form."""
        return sha256(json.dumps(self.to_dict(), separators=(",", ":")).encode()).digest()

    def _arrays(self, update: Arrays, leading: tuple[int, ...]) -> list[NDArray[np.floating]]:
        """The arrays in order, each checked against its entry."""
        _check_mapping(update)
        names = [entry.name for entry in self.entries]
        if set(update) != set(names):
            missing, unknown = sorted(set(names) - set(update)), sorted(set(update) - set(names))
            raise UnsafeUpdateError(f"the update does not match the layout: missing {missing}, unknown {unknown}")
        arrays = []
        for entry in self.entries:
            array = np.asarray(update[entry.name])
            if array.shape != leading + entry.shape or array.dtype.name != entry.dtype:
                raise UnsafeUpdateError(
                    f"array {entry.name!r} must be {entry.dtype}{list(leading + entry.shape)}, "
                    f"got {array.dtype.name}{list(array.shape)}"
                )
            arrays.append(array)
        return arrays


def _check_mapping(update: object) -> None:
    if not isinstance(update, Mapping):
        raise UnsafeUpdateError(f"an update maps names to arrays, got {type(update).__name__}")

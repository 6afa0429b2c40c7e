"""How the messages of a round travel inside Flower's: as `train` messages with a record named `secagg`.

Stages, each one exchange with every node:

    advertise    invitation                          -> public keys          only for nodes without keys in advance
    share        everybody's public keys             -> sealed shares        with the invitation, if keys were there
    contribute   sealed shares, model, train config  -> masked update        the user's train function runs here
    check        survivors                           -> signature over them
    unmask       signatures                          -> shares, and keys for the next round

So a steady state has four exchanges, and the model travels once.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.app.message.array import Array
from numpy import floating
from numpy.typing import NDArray

from protocols import MalformedMessageError

RECORD = "secagg"
WEIGHT = "num-examples"  # Flower's own name for it

T = TypeVar("T", int, str, bytes)


class Stage(Enum):
    """The exchanges of a round, in order."""

    ADVERTISE = "advertise"
    SHARE = "share"
    CONTRIBUTE = "contribute"
    CHECK = "check"
    UNMASK = "unmask"


def field(record: ConfigRecord, name: str, kind: type[T], default: T | None = None) -> T:
    """One entry of a record, of the expected type.

    Raises:
        MalformedMessageError: it is missing or of another type.
    """
    value = record.get(name, default)
    if not isinstance(value, kind):
        raise MalformedMessageError(f"the record has no {name!r} of type {kind.__name__}")
    return value


def arrays_of(content: RecordDict, who: str) -> dict[str, NDArray[floating]]:
    """The named arrays of a message that must have exactly one `ArrayRecord`.

    Raises:
        MalformedMessageError: it has none, or several.
    """
    records = list(content.array_records.values())
    if len(records) != 1:
        raise MalformedMessageError(f"{who} must hold exactly one ArrayRecord, got {len(records)}")
    return {name: array.numpy() for name, array in records[0].items()}


def to_record(arrays: dict[str, NDArray[floating]]) -> ArrayRecord:
    """The inverse of `arrays_of`."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})

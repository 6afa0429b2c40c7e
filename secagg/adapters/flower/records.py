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
from hashlib import sha256
from typing import TypeVar

import msgspec
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy import floating
from numpy.typing import NDArray

from protocols import MalformedMessageError

RECORD = "secagg"
WEIGHT = "num-examples"  # Flower's own name for it

T = TypeVar("T", int, float, str, bytes)


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


def instructions_of(content: RecordDict) -> str:
    """SHA-256, in hex, of all that a message says beside the model and our own record: the train configuration.

    Whoever may give each client its own could tell all but one to train for no steps, and read that one's update off
    the sum.
    """
    said = [
        (name, type(record).__name__, sorted(record.items()))
        for name, record in sorted(content.items())
        if name != RECORD and not isinstance(record, ArrayRecord)
    ]
    models = sorted(content.array_records)
    return sha256(b"secagg/v1/flower/instructions" + msgspec.msgpack.encode((models, said))).hexdigest()


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

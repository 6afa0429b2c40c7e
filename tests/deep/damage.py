"""Faults for a message, on two levels.

1. Bytes: bits flip, the frame is cut, extended or spliced with another one, headers of huge arrays, strings and
   integers are written into it. Nearly all of these stop at the decoder.
2. Values: the body is read as msgpack, one to three of its elements become others, and the body is written again in
   canonical form. These get behind the decoder: ids that are 0, too large, repeated or no integers, lists and bytes of
   another length, bytes of the same length that are no key and no share. Some values are written in a longer form.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import msgspec

from protocols.wire import HEADER_BYTES

HUGE = (
    b"\xdd\xff\xff\xff\xff",  # an array
    b"\xdc\xff\xff",
    b"\xdf\xff\xff\xff\xff",  # a map
    b"\xc6\xff\xff\xff\xff",  # bytes
    b"\xdb\xff\xff\xff\xff",  # a string
    b"\xcf" + b"\xff" * 8,  # an integer
    b"\xce\x80\x00\x00\x00",
    b"\x91" * 2000,  # arrays in arrays
)
NUMBERS = (0, 1, -1, 2**31 - 1, 2**31, 2**62, 2**63, 2**64 - 1)
OTHERS: tuple[Any, ...] = (1.0, True, False, "1", None, b"", [], {}, [1], {1: 1})


def damaged_bytes(frame: bytes, other: bytes, rng: random.Random) -> bytes:
    """The frame with one to three faults of the first level."""
    data = bytearray(frame)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(7):
            case 0 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data += rng.randbytes(rng.randint(1, 40))
            case 3:
                data[at:] = other[at:]
            case 4:
                data[at:at] = rng.choice(HUGE)
            case 5:
                data[at : at + rng.randint(1, 5)] = rng.choice(HUGE)
            case _:
                data[at : at + rng.randint(1, 9)] = rng.randbytes(rng.randint(0, 9))
    return bytes(data)


def damaged_values(head: bytes, other: bytes, rng: random.Random) -> bytes:
    """Header and body, with one to three faults of the second level; the other frame lends elements."""
    body = msgspec.msgpack.decode(head[HEADER_BYTES:])
    loans = [element for element, _ in _places(_readable(other))] or [0]
    for _ in range(rng.randint(1, 3)):
        places = _places(body)
        if places:
            element, put = rng.choice(places)
            put(_other(element, rng.choice(loans), rng))
    return head[:HEADER_BYTES] + msgspec.msgpack.encode(body)


def _readable(frame: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(frame[HEADER_BYTES:])
    except msgspec.DecodeError:  # a signature follows the body
        return []


def _places(tree: Any) -> list[tuple[Any, Callable[[Any], None]]]:
    """Every element of an array within the tree, and how to replace it."""
    found: list[tuple[Any, Callable[[Any], None]]] = []
    if isinstance(tree, list):
        for i, element in enumerate(tree):
            found.append((element, lambda new, i=i: tree.__setitem__(i, new)))  # type: ignore[misc]
            found += _places(element)
    return found


def _other(element: Any, loan: Any, rng: random.Random) -> Any:
    """Something else in place of an element."""
    match rng.randrange(9):
        case 0:
            return rng.choice(NUMBERS)
        case 1:
            return deepcopy(rng.choice(OTHERS))
        case 2:
            return msgspec.Raw(rng.choice(HUGE))
        case 3:
            return deepcopy(loan)
        case 4:
            return _longer(element)
    if isinstance(element, bytes):
        return _same_length(element, rng) if rng.random() < 0.7 else damaged_bytes(element, element, rng)
    if isinstance(element, list) and element:
        return _other_list(element, rng)
    if isinstance(element, int):
        return element + rng.choice((-1, 1)) if element < 2**63 else element - 1
    return element


def _longer(element: Any) -> Any:
    """The same value in an encoding that is not the shortest."""
    if isinstance(element, bytes):
        return msgspec.Raw(b"\xc6" + len(element).to_bytes(4, "big") + element)
    if isinstance(element, list):
        return msgspec.Raw(b"\xdd" + len(element).to_bytes(4, "big") + msgspec.msgpack.encode(element)[1:])
    if isinstance(element, int) and 0 <= element < 2**32:
        return msgspec.Raw(b"\xcf" + element.to_bytes(8, "big"))
    return element


def _same_length(data: bytes, rng: random.Random) -> bytes:
    """Bytes that only their meaning can betray: fields of a fixed size keep it."""
    changed = bytearray(data)
    if not data:
        return data
    at = rng.randrange(len(data))
    match rng.randrange(4):
        case 0:
            changed[at] ^= 1 << rng.randrange(8)
        case 1:
            changed[at:] = rng.randbytes(len(data) - at)
        case 2:
            changed[at:] = b"\xff" * (len(data) - at)  # no element of a field, no canonical key
        case _:
            changed[:] = bytes(len(data))  # a point of low order
    return bytes(changed)


def _other_list(elements: list[Any], rng: random.Random) -> list[Any]:
    at = rng.randrange(len(elements))
    match rng.randrange(6):
        case 0:
            return elements[:at] + elements[at + 1 :]
        case 1:
            return elements[: at + 1] + elements[at:]
        case 2:
            return elements[::-1]
        case 3:
            return []
        case 4:
            return elements * rng.choice((2, 20, 1000 if isinstance(elements[0], int) else 5))
    return rng.sample(elements, len(elements))

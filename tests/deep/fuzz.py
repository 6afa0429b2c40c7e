"""Damaged messages: only `MalformedMessageError` and its kin come out of a decoder, and nothing large is allocated.

`python -m tests.deep.fuzz [--messages N] [--seed S]`. Frames of real rounds of both suites are flipped, cut, extended,
spliced and given huge counts. The seed is printed: with it a failure repeats.
"""

from __future__ import annotations

import argparse
import random
import sys
import tracemalloc
from collections.abc import Iterator

from protocols import MalformedMessageError
from protocols.primitives.keys import SUITES, Suite
from protocols.wire import MaskedInput, Message, decode, decode_signed, message_limit
from tests.protocols.messages import SIGNED
from tests.rounds import Round, kind_of, random_vectors, round_config

CLIENTS, LENGTH = 4, 5
HUGE = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdc\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xcf" + b"\xff" * 8,
    b"\xce\x80\x00\x00\x00",
)
MEMORY = 4 * 1024 * 1024
Frame = tuple[Suite, type[Message], bytes]


def frames() -> list[Frame]:
    """Every message of a round of each suite."""
    found: list[Frame] = []
    for suite in SUITES.values():
        game = Round(
            round_config(CLIENTS, threshold=3, length=LENGTH, suite=suite.number), random_vectors(CLIENTS, LENGTH)
        )
        game.run()
        sent = [data for _, _, data in game.sent] + [data for _, data in game.received]
        found += [(suite, kind_of(data), data) for data in sent]
    return found


def damaged(frame: bytes, other: bytes, rng: random.Random) -> bytes:
    """The frame with one to three faults."""
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


def outcomes(count: int, seed: int) -> Iterator[bool]:
    """For each damaged message, whether it still decoded; any other exception than the allowed one comes through."""
    rng, good = random.Random(seed), frames()
    for _ in range(count):
        suite, kind, frame = rng.choice(good)
        data = damaged(frame, rng.choice(good)[2], rng)
        limit = message_limit(CLIENTS, suite)
        try:
            if kind in SIGNED:
                decode_signed(data, kind, suite=suite, limit=limit, tail_bytes=4 * LENGTH if kind is MaskedInput else 0)
            else:
                decode(data, kind, suite=suite, limit=limit)
        except MalformedMessageError:
            yield False
        else:
            yield True


def fuzz(count: int, seed: int) -> tuple[int, int]:
    """How many of `count` damaged messages still decoded, and the peak of memory in bytes."""
    still = 0
    stream = outcomes(count, seed)
    first = next(stream)
    tracemalloc.start()
    try:
        still = first + sum(stream)
        return still, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main(arguments: list[str] | None = None) -> int:
    """Runs from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    still, peak = fuzz(options.messages, options.seed)
    print(f"{options.messages} damaged messages: {still} decode, the others are malformed; peak {peak:,} bytes")
    return 0 if peak < MEMORY else 1


if __name__ == "__main__":
    sys.exit(main())

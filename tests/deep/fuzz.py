"""Damaged messages: every decoder and every session refuses them by a typed error, or lives with them; none allocates.

`python -m tests.deep.fuzz [--messages N] [--seed S]`. Each message, of a real round of either protocol, is damaged
(`damage`) and goes to the decoder of its kind and to a live session that waits for it (`live`). Then:

1. A decoder gives `MalformedMessageError` and nothing else, and what it refuses no session takes.
2. A client or member gives `RemoteProtocolError`, `PolicyRefusal` or `TooFewClientsError` and nothing else, and is then
   dead and without secrets.
3. A server never raises: it answers `PeerRejected`, and nothing about it has changed. What it takes without the
   sender's hand in it is the genuine message. After a message that a hostile sender signed it closes its phase with a
   result or a `ProtocolError`.
4. Memory stays bounded, whatever counts a message announces.

The seed is printed, and a failure prints its message: with them it repeats, but for KEM ciphertexts (`live`).
"""

from __future__ import annotations

import argparse
import random
import sys
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field

from protocols import (
    MalformedMessageError,
    PeerRejected,
    PersistBeforeSend,
    Phase,
    PolicyRefusal,
    ProtocolError,
    RemoteProtocolError,
    TooFewClientsError,
)

from .damage import damaged_bytes, damaged_values
from .live import Target, targets

MEMORY = 1024 * 1024  # twice what removing the masks takes


@dataclass
class Tally:
    """What became of the messages.

    Attributes:
        decoded: how many still decoded.
        taken: how many a session took though they differ from the genuine message, by target.
        peak: the most memory in bytes that the delivery of one message took.
    """

    decoded: int = 0
    taken: Counter[str] = field(default_factory=Counter)
    peak: int = 0


def fuzz(count: int, seed: int) -> Tally:
    """Damages and delivers `count` messages.

    Raises:
        AssertionError: a property is broken; names the target and the message.
    """
    tally, rng, waiting = Tally(), random.Random(seed), targets(seed)
    for target in waiting:
        assert _decodes(target, target.frame), target.name
        assert _taken(target, target.frame), target.name
    tracemalloc.start()
    try:
        for number in range(count):
            target, other = rng.choice(waiting), rng.choice(waiting).frame
            data, signed = _damaged(target, other, rng)
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            try:
                decodes = _decodes(target, data)
                taken = _taken(target, data)
                assert decodes or not taken, "taken, though it does not decode"
                assert not taken or signed or target.sender is None or data == target.frame, "a forgery is taken"
            except Exception as error:
                raise AssertionError(f"message {number} of seed {seed}, {target.name}: {data.hex()}") from error
            tally.peak = max(tally.peak, tracemalloc.get_traced_memory()[1] - before)
            tally.decoded += decodes
            tally.taken[target.name] += taken and data != target.frame
    finally:
        tracemalloc.stop()
    return tally


def _damaged(target: Target, other: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """A damaged message, and whether its sender signed it as it is."""
    if rng.random() < 0.4:
        return damaged_bytes(target.frame, other, rng), False
    head = damaged_values(target.frame[: target.body_end], other, rng)
    if rng.random() < 0.2:
        return head + target.frame[target.body_end :], False
    return target.renewed(head), True


def _decodes(target: Target, data: bytes) -> bool:
    try:
        target.decode(data)
    except MalformedMessageError:
        return False
    return True


def _taken(target: Target, data: bytes) -> bool:
    """Whether the session takes the message; it waits for the next one afterwards."""
    try:
        return _taken_by_party(target, data) if target.sender is None else _taken_by_server(target, data)
    finally:
        target.snapshot.restore()


def _taken_by_party(target: Target, data: bytes) -> bool:
    session = target.session
    try:
        events = session.receive(data)
        if any(isinstance(event, PersistBeforeSend) for event in events):
            session.persisted()
    except (RemoteProtocolError, PolicyRefusal, TooFewClientsError):
        assert session.phase is Phase.ABORTED
        assert session._secrets is None
        return False
    return True


def _taken_by_server(target: Target, data: bytes) -> bool:
    session = target.session
    events = session.receive(target.sender, data)
    if events:
        assert [(type(event), event.client) for event in events] == [(PeerRejected, target.sender)]
        assert target.snapshot.unchanged(), "a rejected message had an effect"
        return False
    try:
        session.close_phase()
    except ProtocolError:
        assert session.phase is Phase.ABORTED
    return True


def main(arguments: list[str] | None = None) -> int:
    """Runs from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    tally = fuzz(options.messages, options.seed)
    print(f"{options.messages} damaged messages: {tally.decoded} decode, {tally.taken.total()} are taken by a session")
    for name, taken in sorted(tally.taken.items()):
        print(f"  {taken:8} {name}")
    print(f"one message took up to {tally.peak:,} bytes; {MEMORY:,} are allowed")
    return 0 if tally.peak < MEMORY else 1


if __name__ == "__main__":
    sys.exit(main())

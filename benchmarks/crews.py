"""Clients at work: real sessions that take bytes and give bytes, timed, in this process or divided among several.

Rules:

1. Parties of one process take their turns; each call is timed in CPU seconds of that process.
2. Nothing passes between processes but messages and, at the end, times and plain sums: keys stay where they were made.
3. A vector is made when it is needed, and added to the plain sum, with which the round's result is compared.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import cast

import numpy as np

from protocols import (
    ClientId,
    ClientSession,
    ContributionNeeded,
    Event,
    PersistBeforeSend,
    ProtocolError,
    SendMessage,
)
from protocols.one_shot import OneShotMember
from protocols.primitives.packing import UInt32Vector

from .harness import Stopwatch

BATCH = 32  # messages that a process takes at a time
To = tuple[ClientId, bytes | None]  # a party and what it receives; None: it starts
From = tuple[ClientId, bytes]


@dataclass
class Computed:
    """What a crew leaves.

    Attributes:
        seconds: CPU seconds, by party and part: `total`, and in it `mask` (contribute) and `talk` (all else).
        plain: uint32[length], the sum of all vectors modulo 2^32.
        peak_bytes: the most memory that the crew's process ever had in use; 0 if it is the one that asks.
    """

    seconds: dict[ClientId, dict[str, float]]
    plain: UInt32Vector
    peak_bytes: int = 0


class Crew:
    """Parties that take turns in one process.

    Args:
        sessions: the parties.
        silent: clients that do not contribute.
        length: coordinates of a vector.
        largest_entry: of a vector.
    """

    def __init__(
        self,
        sessions: Mapping[ClientId, ClientSession | OneShotMember],
        *,
        silent: frozenset[ClientId],
        length: int,
        largest_entry: int,
    ) -> None:
        self.sessions, self._silent = sessions, silent
        self._length, self._largest = length, largest_entry
        self._watches: defaultdict[ClientId, Stopwatch] = defaultdict(Stopwatch)
        self._plain = np.zeros(length, dtype=np.uint32)

    def answers(self, messages: Iterable[To]) -> Iterator[From]:
        """Delivers messages; what the parties then send."""
        for party, data in messages:
            session = self.sessions[party]
            yield from self._call(party, session.start if data is None else partial(session.receive, data))

    def computed(self) -> Computed:
        """What was computed so far."""
        return Computed({party: watch.cpu for party, watch in self._watches.items()}, self._plain)

    def part(self, which: int, of: int) -> Crew:
        """Every `of`-th party."""
        some = sorted(self.sessions)[which::of]
        return Crew(
            {party: self.sessions[party] for party in some},
            silent=self._silent,
            length=self._length,
            largest_entry=self._largest,
        )

    def _call(self, party: ClientId, call: Callable[[], list[Event]], part: str = "talk") -> Iterator[From]:
        watch, session = self._watches[party], self.sessions[party]
        with watch.measure("total"), watch.measure(part):
            events = call()
        for event in events:
            match event:
                case PersistBeforeSend():
                    yield from self._call(party, session.persisted)
                case ContributionNeeded() if party not in self._silent and not isinstance(session, OneShotMember):
                    yield from self._call(party, partial(session.contribute, self._vector(party)), "mask")
                case SendMessage(data=data):
                    yield party, data

    def _vector(self, client: ClientId) -> UInt32Vector:
        """A cheap, deterministic pattern: masking takes the same time for any values."""
        pattern = np.arange(self._length, dtype=np.uint64) * np.uint64(2654435761 * client)
        pattern %= np.uint64(self._largest + 1)
        vector = pattern.astype(np.uint32)
        np.add(self._plain, vector, out=self._plain)
        return vector


@contextmanager
def at_work(crew: Crew, *, processes: int, leave: list[Computed]) -> Iterator[Callable[[Iterable[To]], Iterator[From]]]:
    """Where the parties work.

    Args:
        crew: all of them.
        processes: among how many they are divided; 1: they stay here.
        leave: gets what each process computed, when the block ends well.

    Yields:
        As `Crew.answers`, but answers come in any order.
    """
    if processes == 1:
        yield crew.answers
        leave.append(crew.computed())
        return
    fork = multiprocessing.get_context("fork")
    workers: list[tuple[Connection, BaseProcess]] = []
    owner: dict[ClientId, Connection] = {}
    for which in range(processes):
        part = crew.part(which, processes)
        ours, theirs = fork.Pipe()
        inherited = [ours, *(other for other, _ in workers)]
        worker = fork.Process(target=_work, args=(part, theirs, inherited))
        worker.start()
        theirs.close()
        workers.append((ours, worker))
        owner |= dict.fromkeys(part.sessions, ours)

    def answers(messages: Iterable[To]) -> Iterator[From]:
        pending: defaultdict[Connection, list[To]] = defaultdict(list)
        for party, data in messages:
            pending[owner[party]].append((party, data))
        for ours in pending:
            ours.send(pending[ours][:BATCH])
        while pending:
            for ours in cast("list[Connection]", wait(list(pending))):
                del pending[ours][:BATCH]
                reply = ours.recv()
                if pending[ours]:
                    ours.send(pending[ours][:BATCH])
                else:
                    del pending[ours]
                if isinstance(reply, ProtocolError):
                    raise reply
                yield from reply

    try:
        yield answers
        for ours, _ in workers:
            ours.send(None)
            leave.append(ours.recv())
    finally:
        for ours, process in workers:
            ours.close()
            process.terminate()  # after a failure it may wait for messages
            process.join()


def _work(crew: Crew, theirs: Connection, inherited: Iterable[Connection]) -> None:
    """The life of a process: messages in, answers out, at the end what was computed."""
    for connection in inherited:
        connection.close()  # or nobody would notice that the process that asks is gone
    os.setsid()  # an interrupt reaches whoever asked, who then ends this process
    try:
        while (messages := theirs.recv()) is not None:
            try:
                reply: object = list(crew.answers(messages))
            except ProtocolError as error:
                reply = ProtocolError(f"{type(error).__name__}: {error}")
            theirs.send(reply)
        computed = crew.computed()
        computed.peak_bytes = process_peak_bytes()
        theirs.send(computed)
    except (EOFError, BrokenPipeError):
        pass  # whoever asked is gone


def process_peak_bytes() -> int:
    """The most memory that this process ever had in use."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""One round with all its parties, timed: every client masks for real, and the sum must be the plain one.

Rules:

1. Times are CPU seconds, apart for each party. Clients take turns (`crews`); the median counts.
2. `mask` is the whole `contribute` call: pack, derive, expand, add, hash, sign. `unmask` is the whole last phase:
   reconstruct, agree, derive, expand, subtract, unpack. `total` is everything that a party computes.
3. Dropouts fall silent after ShareKeys, where they cost the server most.
4. In a one-shot round dropouts never speak: their absence costs nothing, so what is measured is the survivors' part.
5. What reaches the server is kept, and the server is measured on further ones that are given the same messages: the
   least of a few times, since a busy machine only ever adds to them; memory apart, since tracing is slow.
"""

from __future__ import annotations

import builtins
import os
import statistics
import tracemalloc
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import Any, Generic, TypeVar

import numpy as np

from protocols import (
    AggregateReady,
    ClientId,
    ClientPolicy,
    ClientSession,
    Event,
    History,
    Identity,
    PairwiseClient,
    PairwiseServer,
    PeerRejected,
    Phase,
    Roster,
    RoundConfig,
    SendMessage,
    ServerSession,
    required_threshold,
)
from protocols.graph import Degree
from protocols.one_shot import OneShotClient, OneShotConfig, OneShotMember, OneShotServer, committee_digest
from protocols.one_shot.rules import CANARIES, least_noise_bits, least_threshold, signature_kind
from protocols.one_shot.wire import Contribution, decode_contribution
from protocols.partial import Map
from protocols.primitives import ring_mask
from protocols.primitives.keys import SUITES
from protocols.primitives.packing import largest_entry, packed_bytes
from protocols.wire import MaskedInput, decode_signed, message_limit

from .crews import Computed, Crew, To, at_work, process_peak_bytes
from .harness import Stopwatch, best_cpu_seconds

Server = TypeVar("Server", bound=ServerSession)
REPEAT = 3
COLLUDERS = 10  # percent of the clients that may collude, unless a benchmark is told otherwise


def fixed_degree(degree: int | None, *, clients: int) -> Degree:
    """A degree as asked for, with a tenth of the holders corrupt; None is the complete graph.

    Below the degree of the policy (`protocols.graph.choose_degree`) such a ring is for comparison only.
    """
    if degree is None or degree >= clients - 1:
        return Degree(degree=clients - 1, corrupt_holders=clients * COLLUDERS // 100)
    return Degree(degree=degree, corrupt_holders=max(1, degree * COLLUDERS // 100))


def round_config(*, clients: int, dropouts: int, dimension: int, bits: int, degree: Degree, suite: int) -> RoundConfig:
    """A round in which exactly `dropouts` clients may vanish.

    Raises:
        ValueError: there is no such round; says why.
    """
    return RoundConfig(
        round_id=os.urandom(32),
        cohort=clients,
        threshold=required_threshold(holders=degree.degree + 1, corrupt_holders=degree.corrupt_holders),
        min_survivors=clients - dropouts,
        degree=degree.degree,
        corrupt_holders=degree.corrupt_holders,
        length=dimension,
        modulus_bits=bits,
        model=bytes(32),
        binding=bytes(32),
        suite=suite,
    )


@contextmanager
def expansion(threads: int) -> Iterator[Map]:
    """Where the server expands masks."""
    if threads == 1:
        yield builtins.map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


class Inbox:
    """Messages in the order of their arrival; on disk, for those of a large round would not fit beside its parties."""

    def __init__(self) -> None:
        self._file = TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        self._close = weakref.finalize(self, self._file.close)
        self.entries: list[tuple[ClientId, int, int]] = []  # sender, place, size

    def append(self, sender: ClientId, data: bytes) -> None:
        """Keeps one message."""
        self.entries.append((sender, self._file.seek(0, os.SEEK_END), len(data)))
        self._file.write(data)

    def __iter__(self) -> Iterator[tuple[ClientId, bytes]]:
        for sender, place, size in self.entries:
            self._file.seek(place)
            yield sender, self._file.read(size)

    def bytes_from(self, sender: ClientId) -> int:
        """What one party sent."""
        return sum(size for party, _, size in self.entries if party == sender)


class _Timed(Generic[Server]):
    """What rounds of all protocols share: every call of a party is timed, and what reaches the server is kept.

    Args:
        config: the round.
        parties: those that ever speak.
        survivors: clients that contribute.
        largest_entry: of a vector.
        new_server: makes a server.
        processes: among how many the parties are divided.

    Attributes:
        inbox: by phase, every message that the server received.
    """

    def __init__(
        self,
        config: RoundConfig | OneShotConfig,
        *,
        parties: Mapping[ClientId, ClientSession | OneShotMember],
        survivors: frozenset[ClientId],
        largest_entry: int,
        new_server: Callable[[], Server],
        processes: int = 1,
    ) -> None:
        self.survivors, self._bits, self._processes = survivors, config.modulus_bits, processes
        silent = frozenset(parties) - survivors
        self._crew = Crew(parties, silent=silent, length=config.length, largest_entry=largest_entry)
        self._computed: list[Computed] = []
        self.server, self._new_server = new_server(), new_server
        self.inbox: defaultdict[Phase, Inbox] = defaultdict(Inbox)
        self._result: AggregateReady | None = None

    def run(self) -> None:
        """The whole round.

        Raises:
            ValueError: the sum is not the plain one, or an honest message was refused.
        """
        with at_work(self._crew, processes=self._processes, leave=self._computed) as answers:
            messages: list[To] = [(party, None) for party in self._crew.sessions]
            while self._result is None:
                for party, data in answers(messages):
                    self._deliver(party, data)
                messages = []
                for event in self.server.close_phase():
                    match event:
                        case AggregateReady():
                            self._result = event
                        case SendMessage(to=to, data=data) if to is not None and self._listens(to):
                            messages.append((to, data))
        plain = sum((computed.plain for computed in self._computed), np.zeros_like(self._result.vector))
        expected = plain & np.uint32(2**self._bits - 1)
        if not np.array_equal(self._result.vector, expected) or self.survivors != self._result.survivors:
            raise ValueError("the sum is not the plain one")

    def seconds(self, parties: Iterable[ClientId], part: str) -> float:
        """The median over some parties."""
        watches = {party: cpu for computed in self._computed for party, cpu in computed.seconds.items()}
        return statistics.median(watches[party][part] for party in parties)

    def client_seconds(self, part: str) -> float:
        """The median over the surviving clients."""
        return self.seconds(self.survivors, part)

    def peak_bytes(self) -> int:
        """The most memory that this process, and those of the clients, ever had in use."""
        return process_peak_bytes() + sum(computed.peak_bytes for computed in self._computed)

    def upload_bytes(self) -> int:
        """All messages of the client with the highest id, which survives."""
        return sum(messages.bytes_from(max(self.survivors)) for messages in self.inbox.values())

    def server_seconds(self) -> Stopwatch:
        """The server's `total` and `unmask`, in the fastest of a few repetitions."""
        return min((self.repeat_server() for _ in range(REPEAT)), key=lambda watch: watch.cpu["total"])

    def server_peak_bytes(self) -> int:
        """The most that a server has allocated at any time in this round, received messages not counted but for one."""
        tracemalloc.start()
        self.repeat_server()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    def repeat_server(self) -> Stopwatch:
        """Gives a new server the same messages.

        Raises:
            ValueError: it got another sum.
        """
        watch = Stopwatch()
        server = self._new_server()
        events: list[Event] = []
        for phase, messages in self.inbox.items():
            for party, data in messages:
                with watch.measure("total"):
                    server.receive(party, data)
            events.clear()  # the transport has sent them
            with watch.measure("total"), watch.measure("unmask" if phase is Phase.UNMASK else "route"):
                events = server.close_phase()
        match events:
            case [AggregateReady(transcript=transcript)] if self._result and transcript == self._result.transcript:
                return watch
        raise ValueError("from the same messages a second server got another sum")

    def _listens(self, party: ClientId) -> bool:
        """Whether a party takes messages of the server in the phase that it opens."""
        return party in self._crew.sessions

    def _deliver(self, party: ClientId, data: bytes) -> None:
        self.inbox[self.server.phase].append(party, data)
        for answer in self.server.receive(party, data):
            if isinstance(answer, PeerRejected):
                raise ValueError(f"honest party {party} was rejected: {answer.reason}")


class Round(_Timed[PairwiseServer]):
    """All parties of one round.

    Args:
        config: the round; as many clients as may vanish do.
        map: where the server expands masks.
        processes: among how many the clients are divided.
    """

    def __init__(
        self,
        config: RoundConfig,
        *,
        map: Map = builtins.map,  # noqa: A002 - as in PairwiseServer
        processes: int = 1,
    ) -> None:
        self.config = config
        ids = [ClientId(client) for client in range(1, config.cohort + 1)]
        self.dropped = frozenset(ids[: config.cohort - config.min_survivors])
        identities = {client: Identity.generate() for client in ids}
        self.roster = Roster({client: identity.public for client, identity in identities.items()})
        policy = ClientPolicy(
            min_survivors=config.min_survivors, corrupt_holders=config.corrupt_holders, suite=config.suite
        )
        shared: Any = {"roster": self.roster, "policy": policy, "history": History()}
        super().__init__(
            config,
            parties={one: PairwiseClient(config, one, identity=identities[one], **shared) for one in ids},
            survivors=frozenset(ids) - self.dropped,
            largest_entry=largest_entry(config.modulus_bits, config.cohort),
            new_server=lambda: PairwiseServer(config, roster=self.roster, map=map),
            processes=processes,
        )

    def removed_masks(self) -> int:
        """How many masks the server expands: one for each survivor, one for each pair of a dropout and a survivor."""
        holders = self.server._rules.graph.holders
        pairs = sum(len(set(holders(client)) - self.dropped) for client in self.dropped)
        return self.config.min_survivors + pairs

    def verify_seconds(self) -> float:
        """CPU seconds that the server spends on decoding, hashing and checking the signatures of all masked vectors."""
        suite = SUITES[self.config.suite]
        limit = message_limit(self.config.cohort, suite)
        tail = packed_bytes(self.config.length, self.config.modulus_bits)

        def verify() -> None:
            for client, data in self.inbox[Phase.MASKED_INPUT]:
                frame = decode_signed(data, MaskedInput, suite=suite, limit=limit, tail_bytes=tail)
                self.roster.check_signature(client, "MaskedInput", frame.digest, frame.signature)

        return best_cpu_seconds(verify, repeat=REPEAT)


def one_shot_config(
    *, clients: int, dropouts: int, dimension: int, bits: int, members: int, suite: int = 1
) -> OneShotConfig:
    """A one-shot round in which exactly `dropouts` clients may vanish and a tenth of the members are corrupt.

    A coordinate has `bits` bits, or as many as the errors of the masks leave.

    Raises:
        ValueError: there is no such round; says why.
    """
    corrupt = max(1, members * COLLUDERS // 100)
    return OneShotConfig(
        round_id=os.urandom(32),
        cohort=clients,
        committee=tuple(ClientId(clients + slot) for slot in range(1, members + 1)),
        threshold=least_threshold(members=members, corrupt=corrupt),
        min_survivors=clients - dropouts,
        corrupt_holders=corrupt,
        length=dimension,
        modulus_bits=min(bits, ring_mask.MODULUS_BITS - least_noise_bits(clients)),
        model=bytes(32),
        binding=bytes(32),
        suite=suite,
    )


class OneShotRound(_Timed[OneShotServer]):
    """All parties of one one-shot round, with the members' times apart.

    Args:
        config: the round; as many clients as may vanish never speak.
    """

    def __init__(self, config: OneShotConfig) -> None:
        self.config = config
        ids = [ClientId(client) for client in range(1, config.cohort + 1)]
        survivors = ids[config.cohort - config.min_survivors :]
        identities = {party: Identity.generate() for party in (*ids, *config.committee)}
        self.roster = Roster({party: identity.public for party, identity in identities.items()})
        policy = ClientPolicy(
            min_survivors=config.min_survivors,
            corrupt_holders=config.corrupt_holders,
            suite=config.suite,
            committee=committee_digest(self.roster, config.committee),
        )
        shared: Any = {"roster": self.roster, "policy": policy, "history": History()}
        clients = {one: OneShotClient(config, one, identity=identities[one], **shared) for one in survivors}
        members = {one: OneShotMember(config, one, identity=identities[one], **shared) for one in config.committee}
        super().__init__(
            config,
            parties={**clients, **members},
            survivors=frozenset(survivors),
            largest_entry=2**config.modulus_bits - 1,
            new_server=lambda: OneShotServer(config, roster=self.roster),
        )

    def member_seconds(self) -> float:
        """The median over the members, of everything that one computes."""
        return self.seconds(self.config.committee, "total")

    def verify_seconds(self) -> float:
        """CPU seconds that the server spends on decoding, hashing and checking the signatures of all contributions."""
        rules = self.server._rules
        sealed_bytes = rules.sealed_bytes

        def verify() -> None:
            for client, data in self.inbox[Phase.MASKED_INPUT]:
                frame = decode_contribution(
                    data,
                    suite=rules.suite,
                    limit=rules.limits[Contribution],
                    sealed_bytes=sealed_bytes,
                    vector_bytes=4 * (self.config.length + CANARIES),
                )
                self.roster.check_signature(client, signature_kind(Contribution), frame.digest, frame.signature)

        return best_cpu_seconds(verify, repeat=REPEAT)

    def _listens(self, party: ClientId) -> bool:
        return party in (self.survivors if self.server.phase is Phase.MASKED_INPUT else self.config.committee)

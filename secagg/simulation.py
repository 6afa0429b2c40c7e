"""Whole rounds in one process: real clients, a real server, real masks, and a plan of who falls silent when.

`simulate` runs one round. `Simulation` keeps the parties, their histories and their ledgers over many.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from dp import LedgerError, PrivacyLedger
from dp.samplers import UInt32Vector
from protocols import ClientId, ContributionNeeded, Event, Identity, Phase, Roster, SendMessage, TooFewClientsError
from protocols.session import SERVER_TRANSITIONS

from .client import Client
from .config import AggregationConfig
from .history import MemoryHistory
from .layout import Arrays
from .pipeline import Update, finish
from .server import AggregationResult, Server

# The message after which a client falls silent, by the phase in which the server would have needed the next one.
DropPlan = Collection[int] | Mapping[int, Phase]
UpdateSource = Mapping[int, Update] | Callable[[int], Update]
SERVER_PHASES = tuple(start for start, _ in SERVER_TRANSITIONS)  # in each of them the server waits for clients
Tap = Callable[[int, Phase, bytes], None]


def simulate(updates: Mapping[int, Update], config: AggregationConfig, *, drop: DropPlan = ()) -> AggregationResult:
    """One whole round in memory, with real keys, masks and noise.

    Args:
        updates: for each client id the update it contributes.
        config: what all parties agree on.
        drop: clients that fall silent after sharing keys, so that their masks must be recovered; or, for each such
            client, the first phase in which the server hears nothing from it.

    Returns:
        The result over the survivors.

    Raises:
        TooFewClientsError: fewer than `config.min_survivors` are left.
        UnsafeUpdateError: an update is not finite or does not match the layout.
        ValueError: the clients are not as many as the configuration says.
    """
    return Simulation(config, clients=updates).round(updates, drop=drop)


class ObservedClient(Client):
    """A client whose unmasked vector the simulation sees, to compare sums; it is kept until it is added."""

    prepared: UInt32Vector | None = None
    seeds: tuple[bytes, ...] = ()

    def prepare(self, update: Update) -> UInt32Vector:
        """As its parent does, and remembers the result."""
        if self.config.removable:
            self.seeds = self._live().removable_seeds
        self.prepared = prepared = super().prepare(update)
        return prepared

    def add_prepared(self, total: UInt32Vector) -> None:
        """Adds the vector to a sum, and forgets it."""
        if self.prepared is not None:
            np.add(total, self.prepared, out=total)
        self.prepared = None


class Simulation:
    """All parties of one configuration, over many rounds.

    Args:
        config: what all parties agree on.
        clients: the client ids.
        ledger_directory: where every party keeps its ledger; in memory if None. Existing ledgers are continued.

    Attributes:
        exact_sums: rounds whose released sum was compared with the plain integer sum and found equal. A difference is
            an error.

    Raises:
        ValueError: the clients are not as many as the configuration says.
    """

    client_type: ClassVar[type[ObservedClient]] = ObservedClient

    def __init__(
        self, config: AggregationConfig, *, clients: Iterable[int], ledger_directory: str | Path | None = None
    ) -> None:
        ids = sorted(ClientId(client) for client in clients)
        if len(ids) != config.clients:
            raise ValueError(f"the configuration is for {config.clients} clients, got {len(ids)}")
        self.config = config
        self.exact_sums = 0
        self._directory = None if ledger_directory is None else Path(ledger_directory)
        self._continued = self._directory is not None and any(self._directory.glob("*.ledger"))
        identities = {client: Identity.generate() for client in ids}
        self._roster = Roster({client: identity.public for client, identity in identities.items()})
        self._server = Server(config, roster=self._roster, ledger=self._ledger("server"))
        groups: dict[frozenset[ClientId], frozenset[ClientId]] = {}
        self._clients = {
            client: self.client_type(
                config,
                client,
                identity=identities[client],
                roster=self._roster,
                history=MemoryHistory(groups=groups),
                ledger=self._ledger(f"client-{client}"),
            )
            for client in ids
        }

    def round(
        self,
        updates: UpdateSource,
        *,
        drop: DropPlan = (),
        model: Arrays | None = None,
        tap: Tap | None = None,
    ) -> AggregationResult:
        """One round.

        Args:
            updates: for each client its update, or a function that computes it when the client is asked.
            drop: as for `simulate`.
            model: the arrays that all updates start from.
            tap: sees every message that reaches the server: sender, phase, bytes.

        Raises:
            BudgetExceededError: the server's or a client's budget does not allow another round.
            Others as for `simulate`.
        """
        silent_from = {ClientId(client): phase for client, phase in _plan(drop).items()}
        unknown = sorted(set(silent_from) - set(self._clients))
        if unknown:
            raise ValueError(f"clients {unknown} of the drop plan do not take part")
        for client, phase in silent_from.items():
            if phase not in SERVER_PHASES:
                raise ValueError(
                    f"client {client} cannot fall silent in {phase}, only in one of "
                    + ", ".join(phase.value for phase in SERVER_PHASES)
                )
        server = self._server
        plain_sum = np.zeros(self.config.length, dtype=np.uint32)

        def deliver(client: ClientId, call: Callable[[], list[Event]]) -> None:
            """Runs one call of a client, and what follows from it, until the client falls silent."""
            if silent_from.get(client) is server.phase:
                return
            try:
                events = call()
            except TooFewClientsError:
                return  # it left the round; the server notices its silence
            for event in events:
                match event:
                    case ContributionNeeded() if silent_from.get(client) is not server.phase:
                        update = updates(client) if callable(updates) else updates[client]
                        deliver(client, partial(self._clients[client].contribute, update))
                    case SendMessage(data=data):
                        if tap is not None:
                            tap(client, server.phase, data)
                        accepted = not server.receive(client, data)
                        if accepted and server.phase is Phase.MASKED_INPUT:
                            self._clients[client].add_prepared(plain_sum)

        def begin(client: Client, invitation: bytes) -> list[Event]:
            return client.begin(invitation, model=model, clip_norm=server.config.clip_norm)

        try:
            for message in server.begin(model):
                if message.to is not None:
                    deliver(message.to, partial(begin, self._clients[message.to], message.data))
            while True:
                for event in server.close_phase():
                    match event:
                        case SendMessage(to=to, data=data) if to is not None:
                            deliver(to, partial(self._clients[to].receive, data))
                        case AggregationResult():
                            self._check_sum(plain_sum, event)
                            return event
        finally:
            # Whoever is not done has left the round: charged if its vector had left (or the unmask request), else free.
            server.abandon()
            for party in self._clients.values():
                party.abandon()

    @property
    def seed(self) -> bytes:
        """The public seed of the present or last round's rotation, for clients that rotate by themselves."""
        return self._server.seed

    def close(self) -> None:
        """Closes all ledgers."""
        for ledger in (self._server.ledger, *(client.ledger for client in self._clients.values())):
            if ledger is not None:
                ledger.close()

    def _check_sum(self, plain_sum: UInt32Vector, result: AggregationResult) -> None:
        """The released sum is the plain one, to the last bit."""
        words = plain_sum & np.uint32(2**self.config.modulus_bits - 1)
        dropouts = self.config.clients - len(result.survivors)
        removed = {client: self._clients[client].seeds[dropouts:] for client in result.survivors}
        seed = self._server.seed
        plain = finish(words, self.config, survivors=result.survivors, removed=removed, seed=seed)
        if not np.array_equal(plain.total, result.total):
            raise RuntimeError("the released sum differs from the plain sum of the survivors: please report this bug")
        self.exact_sums += 1

    def _ledger(self, name: str) -> PrivacyLedger | None:
        budget = self.config.budget()
        if budget is None or self._directory is None:
            return None
        path = self._directory / f"{name}.ledger"
        if path.exists():
            return PrivacyLedger.open(path)
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._continued:
            raise LedgerError(f"{path} is missing beside other ledgers: a new one would forget what was spent")
        return PrivacyLedger.create(path, budget=budget)


def _plan(drop: DropPlan) -> Mapping[int, Phase]:
    """A set of clients drops out after ShareKeys, where it costs the server most."""
    return drop if isinstance(drop, Mapping) else dict.fromkeys(drop, Phase.MASKED_INPUT)

"""`SecAggGrid`: a Flower `Grid` on which unmodified strategies get the mean of masked updates, and nothing else.

Rules:

1. A strategy's train messages become one round of secure aggregation; the strategy gets one synthetic reply with the
   survivors' mean. Strategies that only average (`SUMMING`) cannot tell the difference; those that look at single
   clients (Krum, medians, q-fair averaging, Flower's own noise) are refused before the round.
2. All clients on the roster are asked in every round, for the same: one model, one train configuration.
3. Nothing is asked in clear: evaluate messages are refused. Evaluate on the server (`evaluate_fn`), or let the train
   function return metrics that were agreed; they ride in the masked vector.
4. A client that refuses, fails or is silent is a dropout, with its reason in `failures`; with too few left the round
   ends in an error that quotes these reasons. A round's time is bounded: `timeout` for training, `stage_timeout` for
   every other exchange.
5. Nodes are told apart by what they sign, not by what Flower calls them.
"""

from __future__ import annotations

import shutil
import time
import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi, Strategy
from numpy.typing import NDArray

from dp import PrivacyBudget, PrivacyLedger
from protocols import ClientId, PeerRejected, ProtocolError, Roster, SendMessage, TooFewClientsError
from protocols.wire import KeyBundle

from ...layout import Layout
from ...server import AggregationResult, Server
from .agreement import Agreement, layout_text
from .mod import SIMULATION, node_name, simulation_directory
from .node import AGREEMENT, ROSTER, enrol, read_roster, write_agreement, write_roster
from .records import RECORD, WEIGHT, Stage, arrays_of, field, instructions_of, to_record

if TYPE_CHECKING:
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.run import Run

SUMMING = (FedAvg, FedAvgM, FedProx, FedAdagrad, FedAdam, FedYogi)
POLL_SECONDS = 0.1


class UnsupportedStrategyError(TypeError):
    """The strategy needs more than the mean of all updates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a node did not go on: its own reason, or what its message was rejected for.

    Attributes:
        round: the number of the round, from 1, aborted ones included.
        node: Flower's name for the node.
        client: who it proved to be, if it did.
        stage: the exchange that it missed.
        reason: in words.
    """

    round: int
    node: int
    client: int | None
    stage: str
    reason: str


class SecAggGrid(Grid):
    """Give it to `strategy.start(grid=...)` in place of the grid.

    Args:
        grid: Flower's.
        strategy: the strategy that will be started.
        settings: the `secagg-` keys (`agreement`), such as the run configuration.
        roster: the pinned public identities, or the path of `roster.toml`.
        ledger: where the server keeps its budget: a path, whose file is made if there is none, or the address of a
            ledger in PostgreSQL. None: the budget lasts as long as the run.
        stage_timeout: seconds that the server waits in every exchange without training.

    Attributes:
        results: of all rounds that were completed.
        failures: nodes that did not go on, over all rounds.
        rounds: how many were begun.

    Raises:
        UnsupportedStrategyError: the strategy needs more than the mean, or asks for answers in clear.
        ValueError: a setting is missing, unknown or wrong, or the roster has not as many clients as agreed.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: Strategy,
        settings: Mapping[str, object],
        *,
        roster: Roster | str | Path,
        ledger: str | Path | None = None,
        stage_timeout: float = 60.0,
    ) -> None:
        check_strategy(strategy)
        self.results: list[AggregationResult] = []
        self.failures: list[Failure] = []
        self.rounds = 0
        self._waited = -1  # the number of rounds when all nodes were last waited for
        self._grid = grid
        self._agreement = Agreement.of(settings)
        self._roster = roster if isinstance(roster, Roster) else read_roster(roster)
        if len(self._roster) != self._agreement.clients:
            raise ValueError(f"{self._agreement.clients} clients are agreed, the roster has {len(self._roster)}")
        self._ledger_at = ledger
        self._ledger: PrivacyLedger | None = None
        self._stage_timeout = stage_timeout
        self._layout: Layout | None = None
        self._clip_norm: float | None = None  # of the next round; the initial one before the first
        self._clients: dict[int, ClientId] = {}  # Flower's node -> who it proved to be
        self._bundles: dict[ClientId, KeyBundle] = {}

    @classmethod
    def of(cls, grid: Grid, context: Context, strategy: Strategy) -> SecAggGrid:
        """From the run configuration alone.

        Keys of the server, beside those of the agreement: `secagg-roster` and `secagg-ledger` (paths),
        `secagg-stage-timeout` (seconds); or, in a simulation, `secagg-simulation = true`: the nodes' directories are
        then made here, and removed with this object.
        """
        check_strategy(strategy)
        config = context.run_config
        simulation = simulation_directory(config, context.run_id)
        if simulation is not None:
            simulate_nodes(simulation, config)
        roster = config.get("secagg-roster") if simulation is None else str(simulation / ROSTER)
        if not isinstance(roster, str) or not roster:
            raise ValueError("secagg-roster must be the path of the roster, or secagg-simulation = true")
        ledger = config.get("secagg-ledger")
        secure = cls(
            grid,
            strategy,
            config,
            roster=roster,
            ledger=ledger if isinstance(ledger, str) and ledger else None,
            stage_timeout=float(config.get("secagg-stage-timeout", 60.0)),
        )
        if simulation is not None:
            weakref.finalize(secure, shutil.rmtree, simulation, ignore_errors=True)
        return secure

    def statement(self) -> str:
        """The privacy statement of the last round.

        Raises:
            ValueError: there was none.
        """
        if not self.results:
            raise ValueError("no round was completed")
        return self.results[-1].statement()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """One round of secure aggregation.

        Args:
            messages: a strategy's train messages, one for each node.
            timeout: seconds that the server waits for training.

        Returns:
            One reply with the survivors' mean; nothing for no messages.

        Raises:
            UnsupportedStrategyError: a message asks for an answer in clear, or the messages differ in their model.
            TooFewClientsError: fewer clients than the floor are left; quotes the reasons of the others.
            RemoteProtocolError: a share does not fit; names the client.
            BudgetExceededError: the budget does not allow another round.
        """
        asked = list(messages)
        if not asked:
            return []
        return [_Round(self, asked, timeout).run()]

    def _server_of(self, layout: Layout, instructions: str) -> Server:
        """The server of one round; its budget lasts over all of them, and its layout is that of the first.

        Some strategies turn float32 into float64 on the way (`FedAdam`): dtypes may differ in later rounds.
        """
        self._layout = self._layout or layout
        shapes, agreed = ({entry.name: entry.shape for entry in one.entries} for one in (layout, self._layout))
        if shapes != agreed:
            raise UnsupportedStrategyError("names and shapes of the model must be the same in all rounds")
        config = self._agreement.config(self._layout, instructions, clip_norm=self._clip_norm)
        budget = config.budget()
        if budget is not None and self._ledger is None:
            self._ledger = _open_ledger(self._ledger_at, budget)
        return Server(config, roster=self._roster, ledger=self._ledger)

    # The rest of Flower's interface.

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See `Grid`."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid`; waits once a round, for at most `stage_timeout`, until every client's node is connected."""
        deadline = time.monotonic() + (0.0 if self._waited == self.rounds else self._stage_timeout)
        while len(nodes := list(self._grid.get_node_ids())) < self._agreement.clients and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._waited = self.rounds
        return nodes

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See `Grid`."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refused: a message beside the round would ask for an answer in clear."""
        raise UnsupportedStrategyError("SecAggGrid sends whole rounds only: use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refused, as `push_messages`."""
        raise UnsupportedStrategyError("SecAggGrid sends whole rounds only: use send_and_receive")


class _Round:
    """One round: the exchanges with the nodes, and who is still there."""

    def __init__(self, owner: SecAggGrid, asked: list[Message], timeout: float | None) -> None:
        self._owner = owner
        self._asked = {message.metadata.dst_node_id: message for message in asked}
        self._timeout = timeout
        first = asked[0]
        for message in asked:
            if message.metadata.message_type.partition(".")[0] != "train":
                raise UnsupportedStrategyError(
                    f"a {message.metadata.message_type} message asks every client for an answer in clear: set "
                    "fraction_evaluate=0 and evaluate on the server, or let the train function return agreed metrics"
                )
        if len(self._asked) != len(asked):
            raise UnsupportedStrategyError("the strategy asks a node twice in one round")
        model, self._instructions = arrays_of(first.content, "a train message"), instructions_of(first.content)
        for message in asked:
            if message.content is first.content:
                continue
            if not _equal(model, arrays_of(message.content, "a train message")):
                raise UnsupportedStrategyError("the strategy sends different models to different clients")
            if instructions_of(message.content) != self._instructions:
                raise UnsupportedStrategyError("the strategy gives different instructions to different clients")
        self._server = owner._server_of(Layout.of(model), self._instructions)
        floor = self._server.config.min_survivors
        if len(asked) < floor:
            raise TooFewClientsError(f"the strategy asks {len(asked)} nodes, the floor is {floor}: are all connected?")
        self._layout = self._server.config.layout
        self._model = {entry.name: model[entry.name].astype(entry.dtype) for entry in self._layout.entries}

    def run(self) -> Message:
        owner, server = self._owner, self._server
        owner.rounds += 1
        in_advance = {node: client for node, client in owner._clients.items() if node in self._asked}
        bundles = {client: owner._bundles[client] for client in in_advance.values() if client in owner._bundles}
        owner._bundles = {}  # keys serve one round, whatever comes of it
        opening = ConfigRecord({"agreement": owner._agreement.to_text(), "layout": layout_text(self._layout)})
        opening["instructions"], opening["clip-norm"] = self._instructions, server.config.clip_norm
        opening["invitation"] = server.begin(self._model, bundles=bundles)[0].data
        try:
            nodes = {client: node for node, client in in_advance.items() if client in bundles}
            known = set(nodes.values())
            fresh = {node: ConfigRecord(dict(opening)) for node in self._asked if node not in known}
            self._exchange(Stage.ADVERTISE, fresh, nodes)
            prepared = set(bundles)  # these have not seen the invitation yet
            for stage in (Stage.SHARE, Stage.CONTRIBUTE, Stage.CHECK, Stage.UNMASK):
                records = {}
                for event in server.close_phase():
                    if isinstance(event, SendMessage) and event.to in nodes:
                        first = stage is Stage.SHARE and event.to in prepared
                        records[nodes[event.to]] = ConfigRecord({**(opening if first else {}), "data": event.data})
                self._exchange(stage, records, nodes)
            (result,) = [event for event in server.close_phase() if isinstance(event, AggregationResult)]
            owner._bundles, owner._clip_norm = server.next_bundles, server.config.clip_norm
        except TooFewClientsError as error:
            failures = [failure for failure in owner.failures if failure.round == owner.rounds]
            raise TooFewClientsError("; ".join([str(error), *_reasons(failures)]), phase=error.phase) from None
        finally:
            server.abandon()
        owner.results.append(result)
        return self._reply(result)

    def _exchange(self, stage: Stage, records: Mapping[int, ConfigRecord], nodes: dict[ClientId, int]) -> None:
        """Sends one record to each of these nodes, and gives their answers to the server as they come."""
        if not records:
            return
        patience = self._timeout if stage is Stage.CONTRIBUTE else self._owner._stage_timeout
        grid, sent_to = self._owner._grid, dict[str, int]()
        for node, record in records.items():
            record["stage"] = stage.value
            asked = self._asked[node]
            content = RecordDict(dict(asked.content) if stage is Stage.CONTRIBUTE else {})
            for name in content.array_records:
                content[name] = to_record(self._model)
            content[RECORD] = record
            message = Message(
                content,
                dst_node_id=node,
                message_type=asked.metadata.message_type,
                group_id=asked.metadata.group_id,
                ttl=patience,
            )
            sent_to |= dict.fromkeys(grid.push_messages([message]), node)
        deadline = None if patience is None else time.monotonic() + patience
        over = False
        while sent_to and not over:
            # The last look comes after the deadline: one reply that breaks off can hold up `pull_messages` for long.
            over = deadline is not None and time.monotonic() >= deadline
            for reply in grid.pull_messages(list(sent_to)):
                answered = sent_to.pop(reply.metadata.reply_to_message_id, None)
                if answered is not None:
                    self._take(stage, answered, reply, nodes)
            if sent_to and not over:
                time.sleep(POLL_SECONDS)
        for node in sent_to.values():
            self._fail(node, stage, f"no answer within {patience:g} s")

    def _take(self, stage: Stage, node: int, reply: Message, nodes: dict[ClientId, int]) -> None:
        """One answer of one node."""
        if reply.has_error():
            self._fail(node, stage, reply.error.reason or "an error without a reason")
            return
        try:
            record = reply.content.config_records.get(RECORD, ConfigRecord())
            client, data = ClientId(field(record, "client", int)), field(record, "data", bytes)
        except ProtocolError as error:
            self._fail(node, stage, f"{error}: has its ClientApp the SecAggMod?")
            return
        rejected = [event.reason for event in self._server.receive(client, data) if isinstance(event, PeerRejected)]
        if rejected:
            self._fail(node, stage, rejected[0])
            return
        nodes[client] = node
        self._owner._clients[node] = client

    def _fail(self, node: int, stage: Stage, reason: str) -> None:
        owner = self._owner
        client = owner._clients.get(node)
        owner.failures.append(Failure(round=owner.rounds, node=node, client=client, stage=stage.value, reason=reason))

    def _reply(self, result: AggregationResult) -> Message:
        """The mean, as if one client had sent it."""
        trained = {name: array + result.mean[name] for name, array in self._model.items()}
        weight = len(result.survivors) if result.weight is None else result.weight
        metrics = MetricRecord({**result.metrics, WEIGHT: max(float(weight), 1.0)})
        content = RecordDict({"arrays": to_record(trained), "metrics": metrics})
        return Message(content, reply_to=next(iter(self._asked.values())))


def _open_ledger(location: str | Path | None, budget: PrivacyBudget) -> PrivacyLedger:
    """The server's own; what binds is the ledger of every node."""
    if location is None:
        return PrivacyLedger.create(":memory:", budget=budget)
    if "://" in str(location) or Path(location).exists():
        return PrivacyLedger.open(location)
    return PrivacyLedger.create(location, budget=budget)


def _reasons(failures: Iterable[Failure]) -> list[str]:
    """Each reason once, with the nodes that gave it."""
    nodes: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for failure in failures:
        who = f"node {failure.node}" if failure.client is None else f"client {failure.client}"
        nodes[failure.stage, failure.reason].append(who)
    return [f"{', '.join(who)} in stage {stage!r}: {reason}" for (stage, reason), who in nodes.items()]


def _equal(model: Mapping[str, NDArray[np.floating]], other: Mapping[str, NDArray[np.floating]]) -> bool:
    return model.keys() == other.keys() and all(np.array_equal(model[name], other[name]) for name in model)


def check_strategy(strategy: Strategy) -> None:
    """Refuses strategies that need more than the mean of all updates.

    Raises:
        UnsupportedStrategyError: says what it needs.
    """
    name = type(strategy).__name__
    owner = next(kind for kind in type(strategy).__mro__ if "aggregate_train" in vars(kind))
    if not isinstance(strategy, FedAvg) or owner not in SUMMING:
        supported = ", ".join(kind.__name__ for kind in SUMMING)
        raise UnsupportedStrategyError(
            f"{name} looks at the updates of single clients, which nobody sees here; supported are {supported}"
        )
    if strategy.fraction_train != 1.0:
        raise UnsupportedStrategyError(
            f"{name} trains on a fraction of {strategy.fraction_train:g}: set fraction_train=1.0, every client on the "
            "roster takes part in every round"
        )
    if strategy.fraction_evaluate != 0.0:
        raise UnsupportedStrategyError(
            f"{name} asks clients to evaluate, in clear: set fraction_evaluate=0.0 and evaluate on the server, or let "
            "the train function return agreed metrics"
        )
    if strategy.weighted_by_key != WEIGHT:
        raise UnsupportedStrategyError(f"{name} weighs by {strategy.weighted_by_key!r}, supported is {WEIGHT!r}")


def simulate_nodes(directory: str | Path, settings: Mapping[str, object]) -> Roster:
    """Enrols all nodes of a simulation on this machine: each in its own directory, with the roster and the agreement.

    Args:
        directory: where; created with mode 0700.
        settings: the `secagg-` keys.

    Returns:
        The roster.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, mode=0o700)
    agreed = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}
    clients = range(1, Agreement.of(settings).clients + 1)
    identities = {client: enrol(directory / node_name(client), client) for client in clients}
    for client in clients:
        write_roster(directory / node_name(client) / ROSTER, identities)
        write_agreement(directory / node_name(client) / AGREEMENT, agreed)
    write_roster(directory / ROSTER, identities)
    (directory / SIMULATION).touch(mode=0o600)
    return read_roster(directory / ROSTER)

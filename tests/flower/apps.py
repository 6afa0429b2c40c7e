"""Small Flower apps, and two engines for them: Flower's simulation, and one that calls nodes one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import context_from_proto, context_to_proto
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from secagg.adapters.flower import SecAggGrid, SecAggMod, simulate_nodes
from secagg.adapters.flower.node import ROSTER
from secagg.adapters.flower.records import Stage

MODEL = {"w": np.linspace(-1.0, 1.0, 50, dtype=np.float32).reshape(5, 10), "b": np.zeros(7, np.float32)}
PLAIN: dict[str, bool | int | float | str] = {
    "secagg-clients": 8, "secagg-max-dropouts": 2, "secagg-max-colluders": 1,
    "secagg-privacy": "none", "secagg-clip-norm": 20.0,
}  # fmt: skip
TrainFunction = Callable[[Message, Context], Message]


def update_of(client: int, server_round: int) -> dict[str, np.ndarray]:
    """What a client adds to the model in a round: the same wherever it is computed."""
    rng = np.random.default_rng((client, server_round))
    return {name: rng.normal(size=array.shape).astype(np.float32) for name, array in MODEL.items()}


def examples_of(client: int) -> int:
    return 10 * client


def record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def numpy_of(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in arrays.items()}


def client_of(context: Context) -> int:
    return int(context.node_config["partition-id"]) + 1


def train(message: Message, context: Context) -> Message:
    """A train function as a Flower user writes it."""
    client = client_of(context)
    arrays = {name: array.numpy().astype(np.float32) for name, array in message.content["arrays"].items()}
    update = update_of(client, int(message.content["config"]["server-round"]))
    trained = record({name: array + update[name] for name, array in arrays.items()})
    metrics = MetricRecord({"num-examples": examples_of(client), "train_loss": 0.1 * client})
    return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)


def app_of(*mods: Any, function: TrainFunction = train) -> ClientApp:
    app = ClientApp(mods=list(mods))
    app.train()(function)
    app.evaluate()(function)
    return app


class LocalGrid(Grid):
    """Flower's part, in this process: hands each message to its node as soon as it is pushed.

    As in a deployment, nothing lasts from one message of a node to the next but its files and its serialised context.

    Attributes:
        sent: every message to a node, oldest first.
        replies: every reply.
        before: may change a message, or drop it (None), on its way to a node.
    """

    def __init__(self, make_app: Callable[[], ClientApp], nodes: int, node_config: Mapping[str, Any] | None = None):
        self._make_app = make_app
        self.contexts = {
            900 + number: context_to_proto(
                Context(
                    run_id=1,
                    node_id=900 + number,
                    node_config={"partition-id": number, "num-partitions": nodes, **(node_config or {})},
                    state=RecordDict(),
                    run_config={},
                )
            )
            for number in range(nodes)
        }
        self.before: Callable[[Message], Message | None] = lambda message: message
        self.sent: list[Message] = []
        self.replies: list[Message] = []
        self._waiting: list[Message] = []

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **others: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            number = str(len(self.sent))
            self.sent.append(message)
            message.metadata.__dict__["_message_id"] = number
            numbers.append(number)
            arriving = self.before(message)
            if arriving is not None:
                reply = self.handle(arriving)
                reply.metadata.__dict__["_message_id"] = f"reply {number}"
                self.replies.append(reply)
                self._waiting.append(reply)
        return numbers

    def handle(self, message: Message) -> Message:
        """What a SuperNode does with a message."""
        node = message.metadata.dst_node_id
        context = context_from_proto(self.contexts[node])
        copy = Message(RecordDict(dict(message.content)), metadata=message.metadata)
        try:
            reply = self._make_app()(copy, context)
        except Exception as error:
            return Message(Error(code=2, reason=f"{type(error)}:<'{error}'>"), reply_to=message)
        self.contexts[node] = context_to_proto(context)
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        here = [reply for reply in self._waiting if reply.metadata.reply_to_message_id in wanted]
        self._waiting = [reply for reply in self._waiting if reply not in here]
        return here

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))


@contextmanager
def task() -> Iterator[None]:
    """Flower's messages can only be made inside one of its tasks."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


class Federation:
    """Nodes on this machine, a local grid to them, and the secure one around it."""

    def __init__(
        self,
        directory: Path,
        strategy: Strategy,
        settings: Mapping[str, Any] = PLAIN,
        *,
        function: TrainFunction = train,
        **options: Any,
    ) -> None:
        self.directory, self.strategy = directory, strategy
        if not directory.exists():
            simulate_nodes(directory, settings)
        self.grid = LocalGrid(
            lambda: app_of(SecAggMod(simulation=directory), function=function), settings["secagg-clients"]
        )
        self.secure = SecAggGrid(
            self.grid, strategy, settings, roster=directory / ROSTER, **{"stage_timeout": 0.3, **options}
        )

    def start(self, rounds: int = 1, model: Mapping[str, np.ndarray] = MODEL) -> Result:
        with task():
            return self.strategy.start(grid=self.secure, initial_arrays=record(model), num_rounds=rounds, timeout=0.3)


WEIGHTED = {**PLAIN, "secagg-largest-weight": 80.0, "secagg-metrics": "train_loss:0:1"}
PRIVATE = {
    "secagg-clients": 5, "secagg-max-dropouts": 1, "secagg-max-colluders": 1, "secagg-clip-norm": 1.0,
    "secagg-epsilon": 8.0, "secagg-delta": 1e-5, "secagg-rounds": 2,
}  # fmt: skip
ADAPTIVE = {**PRIVATE, "secagg-adaptive-clipping": True, "secagg-clip-norm": 0.5, "secagg-rounds": 3}
STAGES = list(Stage)


def averaging(**options: object) -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, **options)  # type: ignore[arg-type]


def stage_of(message: Message) -> Stage:
    return Stage(message.content["secagg"]["stage"])


def silence(federation: Federation, client: int, stage: Stage, server_round: int = 1) -> None:
    """That client's node is gone from a stage of a round on, until the next round."""
    gone = {"now": False, "rounds": 0}

    def before(message: Message) -> Message | None:
        if message.metadata.dst_node_id != 899 + client:
            return message
        if "invitation" in message.content["secagg"]:
            gone["rounds"] += 1
            gone["now"] = False
        if gone["rounds"] == server_round and stage_of(message) is stage:
            gone["now"] = True
        return None if gone["now"] else message

    federation.grid.before = before

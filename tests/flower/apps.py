"""Small Flower apps, and a way to run them with our layer in a simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.message.array import Array
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy
from flwr.simulation import run_simulation

from secagg.adapters.flower import SecAggGrid, SecAggMod, simulate_nodes
from secagg.adapters.flower.node import ROSTER

MODEL = {"w": np.linspace(-1.0, 1.0, 50, dtype=np.float32).reshape(5, 10), "b": np.zeros(7, np.float32)}
PLAIN = {
    "secagg-clients": 8, "secagg-max-dropouts": 2, "secagg-max-colluders": 1,
    "secagg-privacy": "none", "secagg-clip-norm": 20.0,
}  # fmt: skip


def update_of(client: int, server_round: int) -> dict[str, np.ndarray]:
    """What a client adds to the model in a round: the same wherever it is computed."""
    rng = np.random.default_rng((client, server_round))
    return {name: rng.normal(size=array.shape).astype(np.float32) for name, array in MODEL.items()}


def record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def train(message: Message, context: Context) -> Message:
    """A train function as a Flower user writes it."""
    client = int(context.node_config["partition-id"]) + 1
    arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
    update = update_of(client, int(message.content["config"]["server-round"]))
    trained = record({name: array + update[name] for name, array in arrays.items()})
    metrics = MetricRecord({"num-examples": 10 * client, "train_loss": 0.1 * client})
    return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)


def client_app(directory: Path, function: Callable[[Message, Context], Message] = train) -> ClientApp:
    app = ClientApp(mods=[SecAggMod(simulation=directory)])
    app.train()(function)
    return app


class Run:
    """What a server app saw."""

    result: Result
    secure: SecAggGrid


def simulate(
    directory: Path,
    strategy: Strategy,
    settings: Mapping[str, object] = PLAIN,
    *,
    rounds: int = 2,
    function: Callable[[Message, Context], Message] = train,
    **grid_options: object,
) -> Run:
    simulate_nodes(directory, settings)
    run, app = Run(), ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run.secure = SecAggGrid(grid, strategy, settings, roster=directory / ROSTER, **grid_options)  # type: ignore[arg-type]
        run.result = strategy.start(grid=run.secure, initial_arrays=record(MODEL), num_rounds=rounds, timeout=120)

    run_simulation(
        server_app=app,
        client_app=client_app(directory, function),
        num_supernodes=int(settings["secagg-clients"]),  # type: ignore[call-overload]
        backend_config={"client_resources": {"num_cpus": 1}},
    )
    return run

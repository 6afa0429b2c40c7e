"""Runs Flower's own simulation (Ray) in a process of its own, and prints what came out as one JSON line.

Strategies run one after the other on the same nodes. In the last round of each, client 3 fails while it trains. (Its
process is not killed: Flower gives a dead Ray actor its next message, so a simulation does not outlive one.)
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

from flwr.app import Context, Message  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAdam, FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402

from secagg.adapters.flower import SecAggGrid, SecAggMod, simulate_nodes  # noqa: E402
from secagg.adapters.flower.node import ROSTER  # noqa: E402
from tests.flower.apps import MODEL, PLAIN, client_of, numpy_of, record, train  # noqa: E402

SETTINGS = {**PLAIN, "secagg-largest-weight": 80.0, "secagg-metrics": "train_loss:0:1"}
STRATEGIES = {"FedAvg": FedAvg, "FedAdam": FedAdam}
ROUNDS = 2
FAILS = 3
MEMORY = 100 * 2**20  # bytes, for Ray's object store


def train_or_fail(message: Message, context: Context) -> Message:
    if client_of(context) == FAILS and message.content["config"]["server-round"] == ROUNDS:
        raise RuntimeError("this client is gone")
    return train(message, context)


def main(directory: Path) -> None:
    simulate_nodes(directory, SETTINGS)
    client_app, server_app = ClientApp(mods=[SecAggMod(simulation=directory)]), ServerApp()
    client_app.train()(train_or_fail)
    report: dict[str, Any] = {}

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        model = MODEL
        for name, kind in STRATEGIES.items():
            strategy = kind(fraction_evaluate=0.0)
            secure = SecAggGrid(grid, strategy, SETTINGS, roster=directory / ROSTER)
            result = strategy.start(grid=secure, initial_arrays=record(model), num_rounds=ROUNDS, timeout=60)
            model = numpy_of(result.arrays)
            report[name] = {
                "model": {name: array.tolist() for name, array in model.items()},
                "survivors": [sorted(one.survivors) for one in secure.results],
                "weights": [one.weight for one in secure.results],
                "failures": [[failure.round, failure.client, failure.stage] for failure in secure.failures],
            }

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=int(PLAIN["secagg-clients"]),
        backend_config={
            "init_args": {"num_cpus": 2, "object_store_memory": MEMORY},
            "client_resources": {"num_cpus": 1},
        },
    )
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

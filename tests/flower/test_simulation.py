"""Flower's own simulation, with Ray: FedAvg and FedAdam over eight masked clients, one of which fails on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg

from tests.flower.apps import MODEL, WEIGHTED, examples_of, numpy_of, record, task, update_of
from tests.flower.simulated import FAILS, ROUNDS, STRATEGIES
from tests.flower.test_rounds import step

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One simulation for all tests: starting Ray takes most of its time."""
    home = tmp_path_factory.mktemp("simulation")
    done = subprocess.run(
        [sys.executable, "-m", "tests.flower.simulated", home / "nodes"],
        cwd=ROOT,
        env={**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def plain_mean(server_round: int, survivors: list[int]) -> dict[str, np.ndarray]:
    weights = np.array([examples_of(client) for client in survivors], dtype=np.float64)
    return {
        name: np.tensordot(weights / weights.sum(), np.stack([update_of(c, server_round)[name] for c in survivors]), 1)
        for name in MODEL
    }


def test_the_failed_client_alone_is_missing(report: dict[str, Any]) -> None:
    everybody = list(range(1, 9))
    for name in STRATEGIES:
        assert report[name]["survivors"] == [everybody] * (ROUNDS - 1) + [[c for c in everybody if c != FAILS]]
        assert report[name]["failures"] == [[ROUNDS, FAILS, "contribute"]]


def test_weights_are_summed_over_the_survivors(report: dict[str, Any]) -> None:
    for name in STRATEGIES:
        assert report[name]["weights"] == pytest.approx([360, 360 - examples_of(FAILS)], rel=1e-5)


def test_models_equal_those_of_the_plain_weighted_mean(report: dict[str, Any]) -> None:
    """What the same strategies make of the means that are computed here, without Flower's engine and without masks."""
    model: dict[str, np.ndarray] = {name: array.astype(np.float64) for name, array in MODEL.items()}
    for name, strategy in (("FedAvg", FedAvg(fraction_evaluate=0.0)), ("FedAdam", FedAdam(fraction_evaluate=0.0))):
        with task():
            for number in range(1, ROUNDS + 1):
                if isinstance(strategy, FedAdam):
                    strategy.current_arrays = {name: array.copy() for name, array in model.items()}
                mean = plain_mean(number, report[name]["survivors"][number - 1])
                trained = record({key: model[key] + mean[key] for key in model})
                content = RecordDict({"arrays": trained, "metrics": MetricRecord({"num-examples": 1.0})})
                question = Message(RecordDict(), dst_node_id=1, message_type="train")
                arrays, _ = strategy.aggregate_train(number, [Message(content, reply_to=question)])
                assert arrays is not None
                model = numpy_of(arrays)
        for key, array in model.items():
            got = np.array(report[name]["model"][key])
            error = 8 * step(WEIGHTED) / (280 / 80) * ROUNDS + 2e-6  # rounding of eight clients, and float32
            np.testing.assert_allclose(got, array, rtol=0, atol=error)
        model = {key: np.array(value) for key, value in report[name]["model"].items()}

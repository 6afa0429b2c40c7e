"""A real deployment over TLS with node authentication, whose nodes are killed before, during and after their upload."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from secagg.adapters.flower.node import ROSTER
from tests.flower.deployment import ROOT, SETTINGS, Deployment, copy_app

# Without noise, the mean that comes out can be compared with the one over the survivors.
EXACT = {
    **{
        name: value
        for name, value in SETTINGS.items()
        if name not in ("secagg-epsilon", "secagg-delta", "secagg-rounds")
    },
    "secagg-privacy": "none",
    "secagg-clip-norm": 10.0,
}
STAGE_SECONDS = 60
ROUNDS = 3
RUN_SECONDS = ROUNDS * 5 * 2 * STAGE_SECONDS  # every exchange at its timeout, twice over
# Client, how many of these lines its SuperNode has written when it is killed: five exchanges in the first round, four
# in each later one; the upload is the third of the first round.
RECEIVED, SENDING, SENT = "Received successfully", "Sending: train message", "Sent successfully"
KILLS = [
    (2, RECEIVED, 3),  # round 1: it has been asked for its update
    (3, SENDING, 5 + 2),  # round 2: the upload has begun
    (4, SENT, 5 + 4 + 2),  # round 3: the upload is complete
]


@pytest.fixture
def hospitals(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "examples" / "flower_app")
    yield import_module("hospitals.task")
    for name in [name for name in sys.modules if name.partition(".")[0] == "hospitals"]:
        del sys.modules[name]


def plain_mean(task: ModuleType, model: dict[str, np.ndarray], survivors: list[int]) -> dict[str, np.ndarray]:
    """What a round must give over these survivors."""
    trained = [task.fit(model, *task.load_hospital(client - 1, 4), 20, 1.0)[0] for client in survivors]
    return {name: np.mean([one[name] - model[name] for one in trained], axis=0) for name in model}


@pytest.mark.slow
def test_nodes_that_are_killed(tmp_path: Path, hospitals: ModuleType) -> None:
    """Three rounds; each survivor set's mean is exact, the killed nodes are missing as they should, and come back."""
    report = tmp_path / "report.json"
    roster = tmp_path / "deployment" / ROSTER
    settings = {**EXACT, "secagg-roster": str(roster), "secagg-stage-timeout": float(STAGE_SECONDS)}
    app = copy_app(tmp_path, settings, report, timeout=STAGE_SECONDS)
    with Deployment(tmp_path / "deployment", EXACT) as deployment:
        deployment.start_run(app, {"num-server-rounds": ROUNDS})
        for client, line, count in KILLS:
            log = deployment.log(f"node-{client}")
            deployment.wait(
                lambda log=log, line=line, count=count: deployment.run_is_over or log.read_text().count(line) >= count,  # type: ignore[misc]
                f"client {client} writes {line!r} {count} times",
                seconds=RUN_SECONDS,
            )
            deployment.restart_node(client)
        log_of_run = deployment.wait_for_run(RUN_SECONDS)
    assert report.exists(), log_of_run[-4000:]
    answer = json.loads(report.read_text())
    model = hospitals.initial_model()
    for result in answer["rounds"]:
        assert len(result["survivors"]) >= 3
        expected = plain_mean(hospitals, model, result["survivors"])
        for name, array in expected.items():
            np.testing.assert_allclose(np.array(result["mean"][name]), array, rtol=0, atol=1e-6)
        model = {name: model[name] + np.array(result["mean"][name]) for name in model}
    survivors = [set(result["survivors"]) for result in answer["rounds"]]
    assert survivors, answer
    assert 2 not in survivors[0]
    assert 1 in {number for number, client, _, _ in answer["failures"] if client == 2}
    if answer["aborted"] is None:  # nodes that are slow to come back end it with too few, which is an answer too
        assert len(survivors) == ROUNDS
        assert 4 in survivors[2]  # its vector was there before it died
        assert 3 in {number for number, client, _, _ in answer["failures"] if client == 4}
    else:
        assert "the floor is 3" in answer["aborted"]

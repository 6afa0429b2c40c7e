"""The utility benchmark's own parts: gradients, scores, calibration; and that a small run goes through."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from benchmarks import learners, strategies, utility
from benchmarks.__main__ import main
from benchmarks.learners import Network
from benchmarks.strategies import Strategy
from dp import poisson_draw
from secagg.datasets import load_breast_cancer


@pytest.mark.parametrize("hidden", [0, 5])
def test_record_gradients_are_those_of_autograd(hidden: int) -> None:
    rng = np.random.default_rng(3)
    network = Network(4, 3, hidden)
    parameters = rng.normal(size=network.length)
    features, labels = rng.normal(size=(6, 4)), rng.integers(0, 3, size=6)
    own = network.record_gradients(parameters, features, labels)
    np.testing.assert_allclose(own.mean(axis=0), network.mean_gradient(parameters, features, labels), atol=1e-12)
    for record in range(6):
        flat = torch.tensor(parameters, requires_grad=True)
        inputs, rest = torch.tensor(features[record]), flat
        if hidden:
            weights, bias, rest = rest[: hidden * 4], rest[hidden * 4 : hidden * 5], rest[hidden * 5 :]
            inputs = torch.tanh(weights.reshape(hidden, 4) @ inputs + bias)
        width = hidden or 4
        scores = rest[: 3 * width].reshape(3, width) @ inputs + rest[3 * width :]
        np.testing.assert_allclose(scores.detach().numpy(), network.scores(parameters, features)[record], atol=1e-12)
        torch.nn.functional.cross_entropy(scores, torch.tensor(labels[record])).backward()
        np.testing.assert_allclose(own[record], flat.grad.numpy(), atol=1e-12)  # type: ignore[union-attr]


def test_auc_is_that_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(4)
    odds = rng.integers(0, 6, size=200) / 2
    labels = rng.integers(0, 2, size=200)
    scores = np.stack([np.zeros(200), odds], axis=1)
    assert learners.auc(scores, labels) == pytest.approx(100 * roc_auc_score(labels, odds))


def case() -> utility.Case:
    data = load_breast_cancer()
    task = utility.Task(load=load_breast_cancer, network=utility._linear, score=learners.auc, clients=10)
    return utility.make_case(task, data, 5)


def test_distributed_and_central_noise_have_one_variance() -> None:
    setting = {"draw": (0.3, 3), "clip": 0.5, "rate": 1.0}
    config = case().config(setting, target=4.0, bits=32)
    nothing = [np.zeros((0, config.length))] * config.clients
    ways = (learners.distributed(config), learners.central(config, np.random.default_rng(0)))
    spread = [np.std([way(nothing) for _ in range(60)]) for way in ways]
    assert spread[0] == pytest.approx(spread[1], rel=0.08)
    expected = config.noise_stddev(config.clients) / config.denominator(config.clients)
    assert spread[0] == pytest.approx(expected, rel=0.06)


def test_the_aggregate_is_the_clipped_mean() -> None:
    """With noise too small to matter, the integer path gives the sum of clipped gradients over the denominator."""
    subject = case()
    config = subject.config({"draw": (0.3, 1), "clip": 0.5, "rate": 1.0}, target=1e6, bits=32)
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=(4, config.length)) for _ in subject.clients]
    expected = sum(learners.clipped(part, 0.5).sum(axis=0) for part in rows) / config.denominator(config.clients)
    np.testing.assert_allclose(learners.distributed(config)(rows), expected, atol=5e-3)


def test_local_noise_keeps_the_budget_alone() -> None:
    unit = case().unit({"draw": (0.3, 20)}, target=2.0)
    multiplier = utility.local_multiplier(unit)
    assert 1.0 < multiplier < 20.0
    assert utility.local_multiplier(case().unit({"draw": (0.3, 20)}, target=1.0)) > multiplier


def test_paired_runs_see_the_same_batches() -> None:
    first, second = (np.random.default_rng(9) for _ in range(2))
    rate = case().unit({"draw": (0.3, 1)}, target=1.0).exact_rate
    draws = [poisson_draw(50, rate=rate, rand=rng.bytes) for rng in (first, second)]
    np.testing.assert_array_equal(*draws)


def test_a_small_run_writes_every_cell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    task = utility.Task(load=load_breast_cancer, network=utility._linear, score=learners.auc, clients=6)
    monkeypatch.setitem(utility.TASKS, "insurance", task)
    monkeypatch.setattr(utility, "EPSILONS", (4.0,))
    monkeypatch.setattr(utility, "ROUNDS", 2)
    for method in ("private", "local"):
        monkeypatch.setitem(utility.GRIDS, method, [{"draw": (0.3, 4), "local_steps": 1, "clip": 0.5, "rate": 0.5}])
    assert main(["utility", "--tasks", "insurance", "--smoke", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["tasks"]["insurance"]
    assert {"pooled", "alone", "fedavg", "private"} <= set(facts)
    row = facts["private"]["4"]
    assert set(row) == {"central", "local", *map(str, utility.BITS)}
    assert 0 < row["32"]["mean"] <= 100
    assert main(["utility", "--seeds", "2"]) == 2


class TestStrategies:
    """FedAvg is the plain mean of models; what else is sent fits the same sum."""

    CLIENTS = tuple(load_breast_cancer().take(np.arange(start, start + 60)) for start in (0, 60, 120, 180))
    NETWORK = Network(30, 2, 4)

    def trained(self, strategy: Strategy, **other: Any) -> Any:
        rng = np.random.default_rng(2)
        return strategies.train(self.NETWORK, self.CLIENTS, strategy, rounds=2, rng=rng, **other)

    def test_fedavg_is_the_mean_of_local_models(self) -> None:
        rng = np.random.default_rng(2)
        model = self.NETWORK.start(rng)
        for _ in range(2):
            local = [
                learners.local_sgd(self.NETWORK, model, client, epochs=1, rate=0.1, rng=rng) for client in self.CLIENTS
            ]
            model = np.mean(local, axis=0)
        np.testing.assert_allclose(self.trained(Strategy()).models[0], model, atol=1e-5)

    def test_a_strong_pull_keeps_the_model_where_it_is(self) -> None:
        start = self.NETWORK.start(np.random.default_rng(2))
        free, pulled = self.trained(Strategy(epochs=10)), self.trained(Strategy(epochs=10, proximal=3.0))
        assert np.linalg.norm(pulled.models[0] - start) < 0.6 * np.linalg.norm(free.models[0] - start)

    def test_controls_double_what_is_sent_and_heads_halve_it(self) -> None:
        plain, controls, personal = (
            self.trained(strategy) for strategy in (Strategy(), Strategy(controls=True), Strategy(personal=True))
        )
        assert controls.bytes_up == 2 * plain.bytes_up
        assert plain.bytes_up == 2 * 4 * self.NETWORK.length
        assert personal.bytes_up == 2 * 4 * (self.NETWORK.length - 10)
        heads = [model[-10:] for model in personal.models]
        assert not np.allclose(heads[0], heads[1])
        np.testing.assert_array_equal(personal.models[0][:-10], personal.models[1][:-10])

    def test_a_quarter_of_the_coordinates_is_a_quarter_of_the_bytes(self) -> None:
        sketched = self.trained(Strategy(), keep=0.25)
        assert sketched.bytes_up == 2 * 4 * math.ceil(0.25 * self.NETWORK.length)
        assert self.trained(Strategy(), bits=16).bytes_up == 2 * 2 * self.NETWORK.length


@pytest.mark.parametrize("name", ["heterogeneity", "communication"])
def test_small_runs_of_the_others(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--smoke", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    row = facts["alphas"]["0.5"] if name == "heterogeneity" else facts["ways"]
    assert len(row) == (5 if name == "heterogeneity" else 2)
    assert main([name, "--seeds", "1"]) == 2

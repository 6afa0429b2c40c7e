"""Federated training: the model learns, the sums are exact, the budget is kept on every side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import secagg
from dp import PrivacyLedger
from protocols import Phase
from secagg.adapters.torch import load_parameters, parameters_of
from secagg.datasets import load_digits
from secagg.simulation import SERVER_PHASES
from secagg.training import RoundRecord, train

CLIENTS, FEATURES, CLASSES, RECORDS = 5, 6, 3, 60


def model() -> nn.Module:
    layer = nn.Linear(FEATURES, CLASSES)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def task() -> tuple[dict[int, TensorDataset], TensorDataset]:
    """Three well separated clouds, dealt to five clients; and a test set."""
    rng = np.random.default_rng(0)
    centres = 2 * np.eye(CLASSES, FEATURES)

    def draw(count: int) -> TensorDataset:
        labels = rng.integers(0, CLASSES, size=count)
        points = centres[labels] + 0.3 * rng.normal(size=(count, FEATURES))
        return TensorDataset(torch.tensor(points, dtype=torch.float32), torch.tensor(labels))

    return {client: draw(RECORDS) for client in range(1, CLIENTS + 1)}, draw(300)


def accuracy(data: TensorDataset, trained: nn.Module) -> float:
    features, labels = data.tensors
    return float((trained(features).argmax(1) == labels).float().mean())


def config(privacy: secagg.RecordLevel | secagg.ClientLevel | secagg.NoPrivacy) -> secagg.AggregationConfig:
    return secagg.AggregationConfig.cross_silo(
        like=parameters_of(model()), clients=CLIENTS, max_dropouts=1, max_colluders=1, privacy=privacy
    )


def state_fraction(path: Path) -> float:
    with PrivacyLedger.open(path) as ledger:
        state = ledger.state()
    return state.filter_spent / state.filter_limit


def record_level(rounds: int) -> secagg.RecordLevel:
    return secagg.RecordLevel(
        clip_norm=1.0, epsilon=6.0, delta=1e-5, rounds=rounds, sampling_rate=0.5, records=CLIENTS * RECORDS
    )


def test_record_level_learns_within_its_budget(tmp_path: Path) -> None:
    clients, test = task()
    seen: list[RoundRecord] = []
    result = train(
        model,
        clients,
        config(record_level(12)),
        rounds=12,
        learning_rate=1.0,
        evaluate=lambda trained: accuracy(test, trained),
        drop=lambda number: {number % CLIENTS + 1: Phase.MASKED_INPUT},
        callbacks=[seen.append],
        ledger_directory=tmp_path,
    )
    assert accuracy(test, result.model) > 0.9
    assert result.exact_sums == 12
    assert [record.round for record in seen] == list(range(1, 13))
    assert all(record.dropouts == 1 for record in seen)
    spent = [record.epsilon for record in seen]
    assert spent == sorted(spent)
    assert spent[-1] <= 6.0
    for name in ("server", *(f"client-{client}" for client in clients)):
        with PrivacyLedger.open(tmp_path / f"{name}.ledger") as ledger:
            state = ledger.state()
            assert state.filter_spent <= state.filter_limit
            if name == "server":
                assert state.rounds_committed == 12
                assert state.epsilon == spent[-1]
    assert seen[0].metrics().keys() == {
        "round/survivors", "round/dropouts", "round/bytes_up", "round/seconds", "privacy/epsilon", "privacy/delta",
        "privacy/budget_fraction", "privacy/clip_norm", "model/score",
        *(f"round/missing/{phase.value}" for phase in SERVER_PHASES),
    }  # fmt: skip
    assert [record.missing[Phase.MASKED_INPUT] for record in seen] == [1] * 12
    assert seen[-1].budget_fraction == state_fraction(tmp_path / "server.ledger")


def test_sixteen_bits_rotate_records_and_learn() -> None:
    data = load_digits()
    inputs, labels = torch.from_numpy(data.features), torch.from_numpy(data.labels)
    clients = {client: TensorDataset(inputs[client::CLIENTS], labels[client::CLIENTS]) for client in range(1, CLIENTS)}
    clients[CLIENTS] = TensorDataset(inputs[::CLIENTS], labels[::CLIENTS])

    def linear() -> nn.Module:
        layer = nn.Linear(64, 10)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    unit = secagg.RecordLevel(
        clip_norm=1.0, epsilon=8.0, delta=1e-5, rounds=8, sampling_rate=0.4, records=len(data.labels)
    )
    narrow = secagg.AggregationConfig.cross_silo(
        like=parameters_of(linear()), clients=CLIENTS, max_dropouts=1, max_colluders=1, privacy=unit, modulus_bits=16
    )
    assert narrow.rotation
    result = train(linear, clients, narrow, rounds=8, learning_rate=1.0, drop=lambda number: {number % CLIENTS + 1})
    assert accuracy(TensorDataset(inputs, labels), result.model) > 0.7
    assert result.exact_sums == 8
    assert result.last.near_limit == 0


def test_a_thirteenth_round_is_refused(tmp_path: Path) -> None:
    clients, _ = task()
    planned = config(record_level(3))
    train(model, clients, planned, rounds=3, learning_rate=0.1, ledger_directory=tmp_path, drop=lambda _: {1})
    with pytest.raises(secagg.BudgetExceededError):
        train(model, clients, planned, rounds=1, learning_rate=0.1, ledger_directory=tmp_path, drop=lambda _: {1})


@pytest.mark.parametrize(
    "privacy",
    [secagg.NoPrivacy(clip_norm=10.0), secagg.ClientLevel(clip_norm=1.0, epsilon=500.0, delta=1e-5, rounds=6)],
)
def test_federated_averaging_learns(privacy: secagg.NoPrivacy | secagg.ClientLevel) -> None:
    clients, test = task()
    result = train(model, clients, config(privacy), rounds=6, learning_rate=0.05, local_epochs=2)
    assert accuracy(test, result.model) > 0.9
    assert result.exact_sums == 6
    assert "budget" in result.statement() or "infinite" in result.statement()


def test_the_masked_mean_is_the_plain_mean_of_the_updates() -> None:
    """One full-batch epoch, no noise: the federated step equals averaging the clients' models by hand."""
    clients, _ = task()
    settings = config(secagg.NoPrivacy(clip_norm=50.0))
    result = train(model, clients, settings, rounds=1, learning_rate=0.1, momentum=0.0, batch_size=RECORDS)
    by_hand = []
    for data in clients.values():
        own = model()
        features, labels = data.tensors
        nn.functional.cross_entropy(own(features), labels).backward()
        by_hand.append({name: -0.1 * p.grad.numpy() for name, p in own.named_parameters() if p.grad is not None})
    for name, array in parameters_of(result.model).items():
        assert np.allclose(array, np.mean([update[name] for update in by_hand], axis=0), atol=1e-5)


def test_wrong_models_and_numbers_are_refused() -> None:
    clients, _ = task()
    with pytest.raises(ValueError, match="rounds"):
        train(model, clients, config(record_level(1)), rounds=0, learning_rate=0.1)
    with pytest.raises(ValueError, match="5 clients"):
        train(model, {1: clients[1]}, config(record_level(1)), rounds=1, learning_rate=0.1)
    with pytest.raises(ValueError, match="coordinates"):
        train(lambda: nn.Linear(FEATURES, 2), clients, config(record_level(1)), rounds=1, learning_rate=0.1)
    with pytest.raises(ValueError, match="GroupNorm"):
        parameters_of(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="the model trains"):
        load_parameters(nn.Linear(2, 2), {"weight": np.zeros((2, 2), np.float32)})


def test_private_weights_and_the_loss_ride_along() -> None:
    """Unequal clients: the step is the mean weighted by records, and the loss is theirs."""
    clients, _ = task()
    cut = {
        client: TensorDataset(*(part[: 2 + 3 * client] for part in data.tensors)) for client, data in clients.items()
    }
    settings = secagg.AggregationConfig.cross_silo(
        like=parameters_of(model()), clients=len(cut), max_dropouts=1, max_colluders=0,
        privacy=secagg.NoPrivacy(clip_norm=50.0), weights=secagg.PrivateWeights(largest=100.0),
        metrics={"loss": (0.0, 20.0)},
    )  # fmt: skip
    result = train(model, cut, settings, rounds=1, learning_rate=0.1, momentum=0.0, batch_size=RECORDS)
    gradients, losses, sizes = [], [], []
    for data in cut.values():
        own = model()
        features, labels = data.tensors
        loss = nn.functional.cross_entropy(own(features), labels)
        loss.backward()
        gradients.append({name: p.grad.numpy() for name, p in own.named_parameters() if p.grad is not None})
        losses.append(float(loss.detach()))
        sizes.append(len(labels))
    for name, array in parameters_of(result.model).items():
        step = np.average([gradient[name] for gradient in gradients], axis=0, weights=sizes)
        assert np.allclose(array, -0.1 * step, atol=1e-4)
    assert result.rounds[0].metrics()["clients/loss"] == pytest.approx(np.average(losses, weights=sizes), abs=1e-3)


def test_metrics_that_local_training_does_not_have_are_refused() -> None:
    clients, _ = task()
    settings = secagg.AggregationConfig.cross_silo(
        like=parameters_of(model()), clients=5, max_dropouts=1, max_colluders=0,
        privacy=secagg.NoPrivacy(clip_norm=50.0), metrics={"recall": (0.0, 1.0)},
    )  # fmt: skip
    with pytest.raises(ValueError, match="recall"):
        train(model, clients, settings, rounds=1, learning_rate=0.1)

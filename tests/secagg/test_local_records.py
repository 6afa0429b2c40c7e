"""Local noise through secure aggregation: a claim that rests on nobody, charged once, at home."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dp import PrivacyLedger, local_epsilon, local_noise, planned_budget
from dp.local import LocalUpdate as SealedUpdate
from dp.record_level import SecurePrivacyEngine
from secagg import (
    AggregationConfig,
    BudgetExceededError,
    ClientLevel,
    LocalRecordLevel,
    LocalUpdate,
    NoPrivacy,
    PrivateWeights,
    RecordLevel,
    UnaccountableError,
    UnsafeUpdateError,
    simulate,
    statement,
    statement_dict,
)
from secagg.adapters.torch import parameters_of
from secagg.client import agreed_ledger
from secagg.training import train

UNIT = LocalRecordLevel(
    clip_norm=10.0, record_clip_norm=1.0, epsilon=8.0, delta=1e-6, rounds=4, local_steps=3, sampling_rate=0.25,
    records=100,
)  # fmt: skip


def blobs(count: int, seed: int) -> TensorDataset:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    features = rng.normal(size=(count, 3)) + np.where(labels, 1.5, -1.5)[:, None]
    return TensorDataset(torch.tensor(features, dtype=torch.float32), torch.tensor(labels))


def config(*, clients: int = 4, privacy: LocalRecordLevel = UNIT, **options: object) -> AggregationConfig:
    given = {"max_dropouts": 0 if clients == 2 else 1, "max_colluders": 0, "like": parameters_of(nn.Linear(3, 2))}
    return AggregationConfig.cross_silo(clients=clients, privacy=privacy, **given | options)


def party(unit: LocalRecordLevel = UNIT, *, seed: int = 0, ledger: PrivacyLedger | None = None):
    module = nn.Linear(3, 2)
    wrapped, optimizer, loader = SecurePrivacyEngine().make_private(
        module=module, optimizer=torch.optim.SGD(module.parameters(), lr=0.5), data_loader=DataLoader(blobs(100, seed)),
        unit=unit, loss_reduction="sum", ledger=ledger,
    )  # fmt: skip
    return module, wrapped, optimizer, loader


def local_update(unit: LocalRecordLevel = UNIT, *, seed: int = 0, ledger: PrivacyLedger | None = None) -> LocalUpdate:
    module, wrapped, optimizer, loader = party(unit, seed=seed, ledger=ledger)
    optimizer.start_update()
    for _, (features, labels) in zip(range(unit.local_steps), loader, strict=False):
        nn.functional.cross_entropy(wrapped(features), labels, reduction="sum").backward()
        optimizer.step()
    return optimizer.local_update(module)


# --- at the client --------------------------------------------------------------------------------------------------


def test_every_step_carries_the_whole_noise_and_is_accounted_at_the_clients_own_rate() -> None:
    _, _, optimizer, _ = party()
    noise = local_noise(UNIT, dimension=8)
    assert optimizer.mechanism == noise
    assert (noise.clients, noise.min_survivors, noise.max_colluders) == (1, 1, 0)
    for _ in range(UNIT.releases):
        optimizer.step()
    spent = optimizer.accountant.get_epsilon(UNIT.delta)
    assert spent == local_epsilon(UNIT, dimension=8, rounds=UNIT.rounds)
    assert 0.98 * UNIT.epsilon < spent <= UNIT.epsilon
    with pytest.raises(BudgetExceededError, match="budget is 8"):
        optimizer.step()
    assert len(optimizer.accountant) == UNIT.releases


def test_the_noise_of_a_step_has_the_accounted_variance() -> None:
    unit = replace(UNIT, rounds=400)
    module, _, optimizer, _ = party(unit)
    optimizer.original_optimizer.param_groups[0]["lr"] = 1.0
    expected = local_noise(unit, dimension=8).noise_multiplier * unit.record_clip_norm / (0.25 * 100)
    moves = []
    for _ in range(400):  # empty batches: nothing but noise
        before = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        optimizer.step()
        moves.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]) - before)
    assert float(torch.stack(moves).std()) == pytest.approx(expected, rel=0.06)


def test_a_client_with_other_numbers_calibrates_its_own_unit_to_the_same_budget() -> None:
    rich = replace(UNIT, sampling_rate=0.05, records=2000)
    assert local_noise(rich, dimension=8).noise_multiplier < local_noise(UNIT, dimension=8).noise_multiplier
    assert local_epsilon(rich, dimension=8, rounds=4) <= UNIT.epsilon
    result = simulate({1: local_update(), 2: local_update(rich, seed=1), 3: local_update(seed=2), 4: local_update()},
                      config())  # fmt: skip
    assert result.epsilon == UNIT.epsilon
    with pytest.raises(UnsafeUpdateError, match="keeps epsilon 9"):
        simulate(dict.fromkeys(range(1, 5), local_update(replace(UNIT, epsilon=9.0))), config())


def test_a_mechanism_with_less_noise_than_the_unit_needs_ends_where_the_budget_does() -> None:
    """However few its steps: what the update says of its budget must be so."""
    module = nn.Linear(3, 2)
    weak = replace(local_noise(UNIT, dimension=8), share_variance=Fraction(1))
    _, optimizer, _ = SecurePrivacyEngine().make_private(
        module=module, optimizer=torch.optim.SGD(module.parameters(), lr=0.5), data_loader=DataLoader(blobs(100, 0)),
        unit=UNIT, mechanism=weak, loss_reduction="sum",
    )  # fmt: skip
    optimizer.start_update()
    with pytest.raises(BudgetExceededError, match="budget is 8"):
        optimizer.step()


def test_what_is_said_of_a_part_of_the_rounds_is_said_of_the_agreed_unit_alone() -> None:
    """One client may spend all in its first round, and its update is accepted."""
    hasty = replace(UNIT, rounds=1, local_steps=3)
    simulate({1: local_update(hasty), **{client: local_update(seed=client) for client in (2, 3, 4)}}, config())
    facts = statement_dict(config(), rounds=1)
    assert facts["ladder"]["local_only"] < local_epsilon(hasty, dimension=8, rounds=1)
    text = statement(config(), rounds=1)
    assert "the server and every other client, for a client of the agreed unit" in text
    assert "may spend that epsilon earlier, and never more" in text


def test_float_sums_are_refused_where_exact_rounding_was_agreed() -> None:
    summed = replace(UNIT, rounding="sum")
    module = nn.Linear(3, 2)
    _, optimizer, _, _ = SecurePrivacyEngine().make_private(
        module=module, optimizer=torch.optim.SGD(module.parameters(), lr=0.5), data_loader=DataLoader(blobs(100, 0)),
        unit=summed, loss_reduction="sum", criterion=nn.CrossEntropyLoss(reduction="sum"), grad_sample_mode="ghost",
    )  # fmt: skip
    updates = []
    for _ in range(2):
        optimizer.start_update()
        optimizer.step()
        updates.append(optimizer.local_update(module))
    with pytest.raises(UnsafeUpdateError, match="rests on floats"):
        simulate(dict.fromkeys(range(1, 5), updates[0]), config())
    simulate(dict.fromkeys(range(1, 5), updates[1]), config(privacy=summed))


def test_a_ledger_is_charged_for_each_step_and_never_twice(tmp_path: Path) -> None:
    budget = planned_budget(UNIT, local_noise(UNIT, dimension=8))
    path = tmp_path / "steps.ledger"
    with PrivacyLedger.create(path, budget=budget) as ledger:
        updates = {client: local_update(seed=client, ledger=ledger if client == 1 else None) for client in range(1, 5)}
        assert ledger.state().rounds_committed == 3
        simulate(updates, config())
        assert ledger.state().rounds_committed == 3  # the round itself costs nothing
        for _ in range(3):
            local_update(ledger=ledger)
        assert ledger.state().rounds_committed == UNIT.releases
        with pytest.raises(BudgetExceededError):
            local_update(ledger=ledger)  # a new engine, new data set object: the ledger remembers
    assert config().budget() is None


def test_a_ledger_of_another_budget_or_at_the_wrong_place_is_refused() -> None:
    other = planned_budget(replace(UNIT, epsilon=7.0), local_noise(UNIT, dimension=8))
    with PrivacyLedger.create(":memory:", budget=other) as ledger:
        with pytest.raises(ValueError, match=r"epsilon 7\.0"):
            party(ledger=ledger)
        with pytest.raises(ValueError, match="make_private"):
            agreed_ledger(ledger, config())


def test_only_private_steps_may_lie_between_start_and_update() -> None:
    module, _, optimizer, _ = party()
    with pytest.raises(UnaccountableError, match="start_update"):
        optimizer.local_update(module)
    optimizer.start_update()
    optimizer.step()
    with torch.no_grad():
        module.weight += 1.0  # a plain training step, say
    for call in (lambda: optimizer.local_update(module), optimizer.step):
        with pytest.raises(UnsafeUpdateError, match="outside private steps"):
            call()
    optimizer.start_update()
    optimizer.step()
    with pytest.raises(UnsafeUpdateError, match="other parameters"):
        optimizer.local_update(nn.Linear(3, 2))
    update = optimizer.local_update(module)
    assert set(update.arrays) == {"weight", "bias"}
    assert repr(update) == "LocalUpdate"
    for attempt in (lambda: pickle.dumps(update), lambda: copy.copy(update)):
        with pytest.raises(TypeError, match="pickled or copied"):
            attempt()
    with pytest.raises(TypeError, match="local_update"):
        SealedUpdate(arrays={}, unit=UNIT, seal=object())


def test_modes_do_not_mix() -> None:
    _, _, optimizer, _ = party()
    with pytest.raises(ValueError, match="own"):
        type(optimizer)(
            optimizer.original_optimizer, unit=UNIT, mechanism=optimizer.mechanism, accountant=optimizer.accountant,
            aggregate=lambda share: (share.take(), 1),
        )  # fmt: skip
    distributed = RecordLevel(clip_norm=1.0, epsilon=8.0, delta=1e-6, rounds=4, sampling_rate=0.25, records=100)
    with pytest.raises(ValueError, match="1 clients"):
        type(optimizer)(
            optimizer.original_optimizer, unit=distributed, mechanism=optimizer.mechanism,
            accountant=optimizer.accountant,
        )  # fmt: skip


# --- through the round ----------------------------------------------------------------------------------------------


def test_the_mean_is_that_of_the_updates_without_further_noise() -> None:
    updates = {client: local_update(seed=client) for client in range(1, 5)}
    subject = config()
    assert subject.mechanism is None
    result = simulate(updates, subject, drop={3})
    assert sorted(result.survivors) == [1, 2, 4]
    for name in ("weight", "bias"):
        expected = np.mean([updates[client].arrays[name] for client in (1, 2, 4)], axis=0)
        np.testing.assert_allclose(result.mean[name], expected, atol=1e-5)
    assert result.ladder is None


def test_two_clients_may_use_it_and_are_told_what_is_not_hidden() -> None:
    result = simulate({1: local_update(), 2: local_update(seed=1)}, config(clients=2))
    text = result.statement()
    assert "from either of the two clients, nothing of the other's update" in text
    with pytest.raises(ValueError, match="at least 3"):
        config(clients=2, privacy=ClientLevel(clip_norm=1.0, epsilon=1.0, delta=1e-6, rounds=1))


def test_updates_that_were_not_paid_for_are_refused() -> None:
    plain = {client: parameters_of(nn.Linear(3, 2)) for client in range(1, 5)}
    with pytest.raises(UnsafeUpdateError, match="SecurePrivacyEngine"):
        simulate(plain, config())
    with pytest.raises(UnsafeUpdateError, match="carries no noise for unit 'none'"):
        simulate(dict.fromkeys(range(1, 5), local_update()), config(privacy=NoPrivacy(clip_norm=1.0)))


@pytest.mark.parametrize("riders", [{"weights": PrivateWeights(largest=2.0)}, {"metrics": {"loss": (0.0, 1.0)}}])
def test_nothing_rides_without_noise(riders: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="without noise"):
        config(**riders)


def test_the_statement_claims_no_gain_from_the_number_of_clients() -> None:
    for clients in (4, 50):
        facts = config(clients=clients)
        text, data = statement(facts), statement_dict(facts)
        assert data["ladder"] == {"local_only": local_epsilon(UNIT, dimension=8, rounds=4)}
        assert json.loads(json.dumps(data)) == data
        assert "with no trust in anyone" in text
        assert "masking adds confidentiality only" in text
        for line in (*data["hidden"], *data["not_hidden"], *data["assumptions"]):
            assert line in text
        values = {line.name: line.value for line in facts.explain()}
        assert values["ladder.local_only"] == data["ladder"]["local_only"]
        assert values["noise_multiplier"] == local_noise(UNIT, dimension=8).noise_multiplier
    one, three = (statement_dict(config(), rounds=rounds)["ladder"]["local_only"] for rounds in (1, 3))
    assert one < three < UNIT.epsilon


@pytest.mark.parametrize("rounding", ["exact", "sum"])
def test_training_spends_each_clients_own_budget_and_no_more(rounding: str, tmp_path: Path) -> None:
    unit = replace(UNIT, rounding=rounding, rounds=2)
    clients = {client: blobs(100, client) for client in range(1, 5)}
    result = train(
        lambda: nn.Linear(3, 2), clients, config(privacy=unit), rounds=2, learning_rate=0.5, momentum=0.0,
        ledger_directory=tmp_path,
    )  # fmt: skip
    assert {record.epsilon for record in result.rounds} == {8.0}
    assert result.exact_sums == 2
    features, labels = blobs(400, 99).tensors
    with torch.no_grad():
        assert (result.model(features).argmax(1) == labels).float().mean() > 0.9
    with PrivacyLedger.open(tmp_path / "steps-1.ledger") as ledger:
        assert ledger.state().rounds_committed == unit.releases
    with pytest.raises(BudgetExceededError):
        train(
            lambda: nn.Linear(3, 2), clients, config(privacy=unit), rounds=1, learning_rate=0.5,
            ledger_directory=tmp_path,
        )  # fmt: skip

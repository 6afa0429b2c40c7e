"""What goes wrong silently when Opacus is used in a federation ends here in a typed error, or cannot happen."""

import json
import math
import os
import warnings

import numpy as np
import pytest
import torch
from opacus.accountants import create_accountant
from opacus.utils.batch_memory_manager import BatchMemoryManager
from opacus.validators.errors import UnsupportedModuleError
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dp import ClientLevel, PrivacyLedger, RecordLevel, calibrate, planned_budget
from dp.errors import BudgetExceededError, UnaccountableError, UnsafeUpdateError
from dp.record_level import FixedRows, GhostRows, SecurePrivacyEngine, SkellamAccountant, require_independent_rows

from .test_record_level import blobs

DELTA = 1e-6


def unit(**change: object) -> RecordLevel:
    given = {"clip_norm": 1.0, "epsilon": 8.0, "delta": DELTA, "rounds": 20, "sampling_rate": 0.25, "records": 240}
    return RecordLevel(**given | change)


def arguments(module: nn.Module | None = None, dataset: object = None, **change: object) -> dict[str, object]:
    module = nn.Linear(3, 2) if module is None else module
    return {
        "module": module,
        "optimizer": torch.optim.SGD(module.parameters(), lr=0.2),
        "data_loader": DataLoader(blobs(60) if dataset is None else dataset, batch_size=20),
        "unit": unit(),
        "clients": 4,
        "min_survivors": 2,
        "max_colluders": 0,
        "loss_reduction": "sum",
        "aggregate": lambda share: (share.take(), 2),
        **change,
    }


def ghost(module: nn.Module | None = None, **change: object) -> dict[str, object]:
    criterion = nn.CrossEntropyLoss(reduction="sum")
    given = {"unit": unit(rounding="sum"), "grad_sample_mode": "ghost", "criterion": criterion}
    return arguments(module, **given | change)


def with_epsilon(**change: object) -> dict[str, object]:
    given = arguments()
    del given["unit"]
    return given | {
        "target_epsilon": 4.0, "target_delta": DELTA, "epochs": 5, "max_grad_norm": 1.0, "sampling_rate": 0.25,
        "records": 240, **change,
    }  # fmt: skip


# --- the budget -----------------------------------------------------------------------------------------------------


def test_an_engine_made_anew_each_round_adds_up() -> None:
    dataset, spent = blobs(60), []
    for _ in range(3):
        engine = SecurePrivacyEngine()
        _, optimizer, _ = engine.make_private(**arguments(dataset=dataset))
        optimizer.step()
        spent.append(engine.get_epsilon(DELTA))
    assert spent == sorted(set(spent))
    with pytest.raises(UnaccountableError, match="3 releases of these records are on record"):
        SecurePrivacyEngine().make_private_with_epsilon(**with_epsilon(data_loader=DataLoader(dataset)))


def test_a_second_step_hook_replaces_the_first_but_not_the_accounting() -> None:
    engine = SecurePrivacyEngine()
    _, optimizer, _ = engine.make_private(**arguments())
    seen = []
    optimizer.attach_step_hook(lambda _: seen.append(1))
    optimizer.attach_step_hook(lambda _: seen.append(2))
    optimizer.step()
    assert seen == [2]
    assert len(engine.accountant) == 1
    assert engine.get_epsilon(DELTA) > 0


def test_a_ledger_refuses_the_round_that_would_pass_the_budget_and_outlives_the_process(tmp_path) -> None:
    path = tmp_path / "client.ledger"
    few = unit(rounds=3, epsilon=4.0)
    mechanism = calibrate(few, dimension=8, clients=4, min_survivors=2, max_colluders=0)
    with PrivacyLedger.create(path, budget=planned_budget(few, mechanism)) as ledger:
        _, optimizer, _ = SecurePrivacyEngine().make_private(**arguments(unit=few, ledger=ledger))
        optimizer.step()
        optimizer.contribution()  # and then the process dies
    with PrivacyLedger.open(path) as ledger:
        _, optimizer, _ = SecurePrivacyEngine().make_private(**arguments(unit=few, ledger=ledger))
        optimizer.contribution()
        optimizer.abandon()
        with pytest.raises(BudgetExceededError):
            optimizer.step()
        assert (ledger.state().rounds_committed, ledger.state().rounds_reserved) == (2, 1)
        with pytest.raises(ValueError, match="epsilon 8"):
            SecurePrivacyEngine().make_private(**arguments(ledger=ledger))


def test_a_checkpoint_keeps_the_budget_and_runs_no_code(tmp_path) -> None:
    engine = SecurePrivacyEngine()
    model, optimizer, _ = engine.make_private(**arguments())
    optimizer.step()
    engine.save_checkpoint(path=tmp_path / "round.pt", module=model, optimizer=optimizer)
    later = SecurePrivacyEngine()
    other, other_optimizer, _ = later.make_private(**arguments())
    later.load_checkpoint(path=tmp_path / "round.pt", module=other, optimizer=other_optimizer)
    assert later.get_epsilon(DELTA) == engine.get_epsilon(DELTA) > 0
    other_optimizer.step()
    with pytest.raises(UnaccountableError, match="forget 2"):
        later.load_checkpoint(path=tmp_path / "round.pt", module=other)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"module_state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        SecurePrivacyEngine().load_checkpoint(path=tmp_path / "evil.pt", module=nn.Linear(3, 2))
    assert not (tmp_path / "ran").exists()
    torch.save({"module_state_dict": {}}, tmp_path / "free.pt")
    with pytest.raises(UnaccountableError, match="no budget"):
        SecurePrivacyEngine().load_checkpoint(path=tmp_path / "free.pt", module=nn.Linear(3, 2))


def test_calibration_never_exceeds_the_target() -> None:
    for target in (0.5, 1.0, 4.0):
        engine = SecurePrivacyEngine()
        _, optimizer, loader = engine.make_private_with_epsilon(**with_epsilon(target_epsilon=target))
        for _ in range(5):
            for _ in loader:
                optimizer.step()
        assert len(engine.accountant) == 20
        assert 0.99 * target < engine.get_epsilon(DELTA) <= target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"sampling_rate": 1.5}, "sampling_rate"),
        ({"target_delta": 1.0}, "delta"),
        ({"noise_multiplier": 1.0}, "unknown option noise_multiplier"),
    ],
)
def test_targets_out_of_bounds_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        SecurePrivacyEngine().make_private_with_epsilon(**with_epsilon(**change))


def test_ghost_clipping_with_a_target_epsilon() -> None:
    made = SecurePrivacyEngine().make_private_with_epsilon(
        **with_epsilon(grad_sample_mode="ghost", criterion=nn.CrossEntropyLoss(reduction="sum"))
    )
    assert len(made) == 4
    assert made[1].unit.rounding == "sum"


def test_history_survives_json_and_counts_steps() -> None:
    engine = SecurePrivacyEngine()
    _, optimizer, _ = engine.make_private(**arguments())
    for _ in range(3):
        optimizer.step()
    assert len(engine.accountant) == 3
    assert len(engine.accountant.history) == 1
    fresh = SkellamAccountant()
    fresh.load_state_dict(json.loads(json.dumps(engine.accountant.state_dict())))
    assert fresh.get_epsilon(DELTA) == engine.get_epsilon(DELTA)


@pytest.mark.parametrize(("name", "least", "most"), [("rdp", 0.9, 1.001), ("prv", 0.7, 1.0)])
def test_opacus_accountants_read_our_history(name, least, most) -> None:
    engine = SecurePrivacyEngine()
    _, optimizer, _ = engine.make_private(**arguments())
    for _ in range(20):
        optimizer.step()
    theirs = create_accountant(name)
    theirs.history = engine.accountant.opacus_history()
    ((multiplier, rate, steps),) = theirs.history
    assert (rate, steps) == (0.25, 20)
    assert multiplier == pytest.approx(optimizer.mechanism.noise_multiplier)
    assert least < theirs.get_epsilon(DELTA) / engine.get_epsilon(DELTA) < most


# --- randomness -----------------------------------------------------------------------------------------------------


def test_torch_manual_seed_repeats_neither_batches_nor_noise() -> None:
    batches, shares = [], []
    for _ in range(2):
        torch.manual_seed(0)
        _, optimizer, loader = SecurePrivacyEngine().make_private(**arguments(dataset=blobs(300)))
        torch.manual_seed(0)
        batches.append([features.flatten().tolist() for features, _ in loader])
        torch.manual_seed(0)
        shares.append(optimizer.contribution().vector)
    assert all(one != other for one, other in zip(*batches, strict=True))
    assert not np.array_equal(*shares)


def test_secure_mode_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="noise and batches never come from Opacus"):
        SecurePrivacyEngine(secure_mode=True)
    with pytest.raises(ValueError, match="noise_generator"):
        SecurePrivacyEngine().make_private(**arguments(noise_generator=torch.Generator()))


# --- batches --------------------------------------------------------------------------------------------------------


def test_the_rate_is_the_public_one_whatever_the_loader_says() -> None:
    for batch_size in (1, 20, 64):
        data_loader = DataLoader(blobs(100), batch_size=batch_size)
        _, optimizer, loader = SecurePrivacyEngine().make_private(**arguments(data_loader=data_loader))
        assert loader.batch_sampler.rate == unit().exact_rate
        assert optimizer.mechanism.sampling_rate == unit().exact_rate
        assert len(loader) == 4
    given = with_epsilon()
    del given["sampling_rate"]
    with pytest.raises(TypeError, match="sampling_rate"):
        SecurePrivacyEngine().make_private_with_epsilon(**given)


def test_the_divisor_is_the_declared_number_and_not_the_realised_one() -> None:
    moves = []
    for present in (10, 200):  # this client has fewer or more records than anybody knows
        module = nn.Linear(3, 2)
        _, optimizer, _ = SecurePrivacyEngine().make_private(**arguments(module, dataset=blobs(present)))
        total = np.full(8, 10**6, dtype=np.int64)
        before = module.bias.detach().clone()
        optimizer.contribution()
        optimizer.apply(total, survivors=2)
        moves.append(float((module.bias.detach() - before).abs().max()))
    assert moves[0] == pytest.approx(moves[1], rel=1e-6)


@pytest.mark.parametrize("make", [arguments, ghost])
def test_an_empty_first_batch_trains_and_sends_noise(make) -> None:
    protected = unit(sampling_rate=2.0**-60, rounding=make()["unit"].rounding, epsilon=1.0)
    engine = SecurePrivacyEngine()
    model, optimizer, *criterion, loader = engine.make_private(**make(unit=protected))
    loss = criterion[0] if criterion else nn.CrossEntropyLoss(reduction="sum")
    features, labels = next(iter(loader))
    assert features.shape == (0, 3)
    loss(model(features), labels).backward()
    optimizer.step()
    assert len(engine.accountant) == 1


@pytest.mark.parametrize("make", [arguments, ghost])
def test_a_logical_batch_in_pieces_is_one_round(make) -> None:
    protected = unit(sampling_rate=1.0, rounding=make()["unit"].rounding)
    engine = SecurePrivacyEngine()
    model, optimizer, *criterion, loader = engine.make_private(**make(unit=protected, physical_batch_size=8))
    loss = criterion[0] if criterion else nn.CrossEntropyLoss(reduction="sum")
    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=8, optimizer=optimizer) as pieces:
        sizes = []
        for features, labels in pieces:
            optimizer.zero_grad()
            loss(model(features), labels).backward()
            optimizer.step()
            sizes.append(len(features))
    assert len(sizes) == math.ceil(60 / 8)
    assert len(engine.accountant) == 1


# --- loss and module ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"loss_reduction": "mean"}, {"criterion": nn.CrossEntropyLoss()}])
def test_a_mean_loss_is_refused_early_with_the_way_out(change) -> None:
    for make in (arguments, ghost):
        with pytest.raises(ValueError, match='Build the loss with reduction="sum" and declare loss_reduction="sum"'):
            SecurePrivacyEngine().make_private(**make() | change)


@pytest.mark.parametrize("make", [arguments, ghost])
def test_state_keys_have_no_prefix(make) -> None:
    module = nn.Linear(3, 2)
    model, *_ = SecurePrivacyEngine().make_private(**make(module))
    assert list(model.state_dict()) == ["weight", "bias"]
    assert model.to_standard_module() is module


@pytest.mark.parametrize("make", [arguments, ghost])
def test_wrapping_twice_is_refused_and_unwrapping_is_named(make) -> None:
    module = nn.Linear(3, 2)
    model, optimizer, *_ = SecurePrivacyEngine().make_private(**make(module))
    for again in ({"module": model}, {"module": module}):
        with pytest.raises(ValueError, match="to_standard_module"):
            SecurePrivacyEngine().make_private(**make(module) | again)
    with pytest.raises(ValueError, match="original_optimizer"):
        SecurePrivacyEngine().make_private(**make(module) | {"optimizer": optimizer})
    standard = model.to_standard_module()
    SecurePrivacyEngine().make_private(**make(standard))


@pytest.mark.parametrize("make", [arguments, ghost])
def test_a_poisoned_record_leaves_the_model_finite(make) -> None:
    module = nn.Linear(3, 2)
    model, optimizer, *criterion, _ = SecurePrivacyEngine().make_private(**make(module))
    loss = criterion[0] if criterion else nn.CrossEntropyLoss(reduction="sum")
    features, labels = blobs(5).tensors
    features[2] = math.nan
    loss(model(features), labels).backward()
    optimizer.step()
    assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())
    assert optimizer.rejected_records == 1


@pytest.mark.parametrize("make", [arguments, ghost])
def test_an_unused_parameter_is_named_as_one_to_freeze(make) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, features):
            return self.used(features)

    model, optimizer, *criterion, _ = SecurePrivacyEngine().make_private(**make(Half()))
    loss = criterion[0] if criterion else nn.CrossEntropyLoss(reduction="sum")
    features, labels = blobs(5).tensors

    def round_() -> None:
        loss(model(features), labels).backward()
        optimizer.step()

    with pytest.raises(UnsafeUpdateError, match=r"requires_grad_\(False\)"):
        round_()
    assert len(optimizer.accountant) == 0


@pytest.mark.parametrize(
    ("layer", "fix"),
    [
        (nn.BatchNorm1d(3), "GroupNorm"),
        (nn.LSTM(3, 2), "DPLSTM"),
        (nn.GRU(3, 2), "DPGRU"),
        (nn.Embedding(4, 3, max_norm=1.0), "max_norm"),
        (nn.Embedding(4, 3, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (nn.Embedding(4, 3, sparse=True), "sparse"),
    ],
)
@pytest.mark.parametrize("make", [arguments, ghost])
def test_layers_that_mix_records_are_refused_early_and_the_fix_is_named(make, layer, fix) -> None:
    with pytest.raises(UnsupportedModuleError, match=fix):
        SecurePrivacyEngine().make_private(**make(nn.ModuleList([layer, nn.Linear(3, 2)])))


def test_tied_weights_need_hooks() -> None:
    def tied() -> nn.Module:
        module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
        module[2].weight = module[0].weight
        return module

    with pytest.raises(ValueError, match="tied"):
        SecurePrivacyEngine().make_private(**ghost(tied()))
    module = tied()
    mechanism = calibrate(unit(), dimension=9, clients=4, min_survivors=2, max_colluders=0)
    given = arguments(module, mechanism=mechanism) | {"clients": None, "min_survivors": None, "max_colluders": None}
    model, optimizer, _ = SecurePrivacyEngine().make_private(**given)
    features, labels = blobs(5).tensors
    nn.functional.cross_entropy(model(features), labels, reduction="sum").backward()
    (rows,) = [parameter.grad_sample for parameter in module.parameters()]
    plain = tied()
    plain.load_state_dict(module.state_dict())
    nn.functional.cross_entropy(plain(features), labels, reduction="sum").backward()
    torch.testing.assert_close(rows.sum(0), plain[0].weight.grad)
    optimizer.step()


class Positions(nn.Module):
    """Position embeddings whose indices are one row seen many times, not contiguous in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place, self.out = nn.Embedding(7, 4), nn.Embedding(5, 4), nn.Linear(4, 7)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        return self.out(self.word(tokens) + self.place(places)).transpose(1, 2)


@pytest.mark.parametrize("make", [arguments, ghost])
def test_expanded_position_indices_work(make) -> None:
    model, optimizer, *criterion, _ = SecurePrivacyEngine().make_private(**make(Positions()))
    loss = criterion[0] if criterion else nn.CrossEntropyLoss(reduction="sum")
    tokens = torch.randint(0, 7, (6, 5))
    loss(model(tokens), tokens).backward()
    optimizer.step()
    assert optimizer.rejected_records == 0


# --- warnings -------------------------------------------------------------------------------------------------------


def test_only_the_two_messages_that_are_beside_the_point_are_silent() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, optimizer, _ = SecurePrivacyEngine().make_private(**arguments())
        optimizer.step()
        assert caught == []
        warnings.warn("Secure RNG turned off", stacklevel=1)
        warnings.warn("Full backward hook is firing for another reason", stacklevel=1)
        assert len(caught) == 2


# --- other units and the self-test ----------------------------------------------------------------------------------


def test_client_level_is_no_unit_of_the_bridge() -> None:
    level = ClientLevel(clip_norm=1.0, epsilon=1.0, delta=DELTA, rounds=1)
    with pytest.raises(ValueError, match="records"):
        SecurePrivacyEngine().make_private(**arguments(unit=level))


class LeakyRows(nn.Linear):
    """Every row sees the sum of all rows."""

    def forward(self, features):
        return super().forward(features + 1e-3 * features.sum(0))


def test_rows_that_depend_on_each_other_are_found_on_this_machine() -> None:
    inputs = torch.randn(5, 3)
    with pytest.raises(UnaccountableError, match="removing record"):
        require_independent_rows(LeakyRows(3, 2), inputs, rows=8)
    require_independent_rows(nn.Sequential(nn.Linear(3, 9), nn.Dropout(0.5), nn.Linear(9, 2)), inputs, rows=8)
    require_independent_rows(Positions(), torch.randint(0, 7, (4, 5)), rows=4)
    for count in (0, 9):
        with pytest.raises(ValueError, match="1 to 8"):
            require_independent_rows(nn.Linear(3, 2), torch.zeros(count, 3), rows=8)


@pytest.mark.parametrize("wrapper", [FixedRows, GhostRows])
def test_trained_layers_with_buffers_are_refused(wrapper) -> None:
    class Counted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("seen", torch.zeros(1))

    with pytest.raises(NotImplementedError, match="buffer"):
        wrapper(Counted(), rows=8)


def test_a_dataset_of_tensors_is_bound_by_identity() -> None:
    first, second = (TensorDataset(*blobs(10).tensors) for _ in range(2))
    engine = SecurePrivacyEngine()
    engine.make_private(**arguments(dataset=first))
    with pytest.raises(UnaccountableError, match="another data set"):
        engine.make_private(**arguments(dataset=second))

"""Ghost clipping with one rounding: the bound on one record's influence, the norms it rests on, and what it refuses."""

import math
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from opacus.layers import DPGRU
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import nn
from torch.utils.data import DataLoader

from dp.accounting import SkellamEvent
from dp.encoding import IntegerEncoder, least_int_bound
from dp.errors import CapacityError, UnsafeUpdateError
from dp.mechanisms import DistributedSkellam, calibrate
from dp.record_level import SecureDPOptimizer, SecurePrivacyEngine, SkellamAccountant
from dp.record_level.ghost import GhostLoss, GhostRows, sum_clip, terms_covered
from dp.units import RecordLevel

from .test_record_level import blobs, squared_norm, stream
from .test_record_level import private as exact_pair

DELTA = 1e-6
SUM_OF_LOSSES = nn.CrossEntropyLoss(reduction="sum")


class NextWord(nn.Module):
    """Logits of shape [records, words, places]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=0)
        self.read = DPGRU(6, 7, batch_first=True)
        self.out = nn.Linear(7, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.read(self.embed(tokens))[0]).transpose(1, 2)


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 3)
    )


MODELS = {
    "linear": (lambda: nn.Linear(64, 3), lambda n: (torch.randn(n, 64), torch.randint(0, 3, (n,)))),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(200, 64), nn.Tanh(), nn.Linear(64, 3)),
        lambda n: (10 * torch.randn(n, 200), torch.randint(0, 3, (n,))),
    ),
    "cnn": (small_cnn, lambda n: (torch.randn(n, 1, 8, 8), torch.randint(0, 3, (n,)))),
    "gru": (NextWord, lambda n: (torch.randint(0, 11, (n, 5)), torch.randint(0, 11, (n, 5)))),
}


def unit(*, clip_norm: float = 0.5, rate: float = 1.0) -> RecordLevel:
    return RecordLevel(
        clip_norm=clip_norm, epsilon=8.0, delta=DELTA, rounds=20, sampling_rate=rate, records=100, rounding="sum"
    )


def private(module: nn.Module, *, rows: int = 8, clip_norm: float = 0.5, int_bound: int | None = None):
    protected = replace(unit(clip_norm=clip_norm), epsilon=1e25)
    dimension = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    mechanism = DistributedSkellam(
        int_bound=int_bound or 4 * least_int_bound(dimension),
        share_variance=Fraction(1, 2**22),  # next to nothing: sums are compared
        dimension=dimension,
        clients=4,
        min_survivors=2,
        max_colluders=0,
        sampling_rate=protected.exact_rate,
        rounding="sum",
    )
    optimizer = SecureDPOptimizer(
        torch.optim.SGD(module.parameters(), lr=0.5),
        unit=protected,
        mechanism=mechanism,
        accountant=SkellamAccountant(),
    )
    wrapped = GhostRows(module, rows=rows)
    return wrapped, optimizer, GhostLoss(wrapped, optimizer, SUM_OF_LOSSES)


def clipped_sum(module, optimizer, criterion, features, labels) -> np.ndarray:
    criterion(module(features), labels).backward()
    total = optimizer._sum.copy()
    optimizer.restart()
    return total


# --- the theorem ----------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.sampled_from([1, 4, 100, 1000]),
    finer=st.sampled_from([1, 8, 100]),
    coin=st.sampled_from([0.0, 0.5, 1 - 2.0**-32, None]),
    aligned=st.booleans(),
)
def test_one_record_moves_the_rounded_sum_by_at_most_the_bound(seed, length, finer, coin, aligned):
    rng = np.random.default_rng(seed)
    bound = finer * least_int_bound(length)
    encoder = IntegerEncoder(clip_norm=1.0, int_bound=bound)
    # The most that the margins admit: the clipped record, and what floats may add to it.
    reach = sum_clip(encoder, length) * (1 + 2.0**-7) * (1 + 2.0**-10)
    others = rng.normal(size=length) * 10.0 ** rng.integers(-3, 4)
    record = np.ones(length) if aligned else rng.normal(size=length)
    record *= reach / np.linalg.norm(record)
    coins = np.full(length, coin) if coin is not None else rng.integers(0, 2**32, length) * 2.0**-32
    if aligned and coin == 0.0:  # every coordinate just below a step: all of them are carried up at once
        others = (np.ceil(others * bound) - 1e-9) / bound

    def rounded(total: np.ndarray) -> np.ndarray:
        return np.floor(total * bound + coins).astype(np.int64)

    assert squared_norm(rounded(others + record) - rounded(others)) <= bound**2


def test_a_bound_that_rounding_would_take_is_refused():
    encoder = IntegerEncoder(clip_norm=1.0, int_bound=79)
    with pytest.raises(CapacityError, match="at least 80"):
        sum_clip(encoder, 100)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_removing_any_record_moves_the_integer_sum_by_at_most_the_bound(name, count, monkeypatch):
    monkeypatch.setattr("dp.record_level.batches.secure_random", lambda: stream(5))
    build, draw = MODELS[name]
    torch.manual_seed(1)
    module, optimizer, criterion = private(build())
    features, labels = draw(count)

    def run(members: list[int]) -> np.ndarray:
        criterion(module(features[members]), labels[members]).backward()
        vector = optimizer.contribution(rand=stream(6)).vector
        optimizer.abandon()
        return vector

    for removed in range(count):
        others = [record for record in range(count) if record != removed]
        moved = run([*others, removed]) - run(others)
        assert 0 < squared_norm(moved) <= optimizer.mechanism.int_bound**2


@pytest.mark.parametrize("name", MODELS)
def test_the_sum_is_that_of_per_record_gradients_clipped_one_by_one(name):
    build, draw = MODELS[name]
    torch.manual_seed(2)
    plain = build()
    features, labels = draw(6)
    expected = 0.0
    clip = private(build())[1].record_clip
    norms = []
    for record in range(6):
        plain.zero_grad()
        SUM_OF_LOSSES(plain(features[record : record + 1]), labels[record : record + 1]).backward()
        gradient = np.concatenate([p.grad.double().flatten().numpy() for p in plain.parameters()])
        norms.append(np.linalg.norm(gradient))
        expected = expected + gradient * min(1.0, clip / norms[-1])
    assert max(norms) > clip
    plain.zero_grad()
    module, optimizer, criterion = private(plain)
    np.testing.assert_allclose(clipped_sum(module, optimizer, criterion, features, labels), expected, atol=1e-5)


def test_the_rest_of_the_batch_is_the_same_to_the_last_bit_in_fixed_rows(monkeypatch):
    monkeypatch.setattr("dp.record_level.batches.secure_random", lambda: stream(5))
    for build, draw in MODELS.values():
        torch.manual_seed(3)
        module, _, criterion = private(build())
        features, labels = draw(5)
        seen = []
        for count in (5, 4):
            criterion(module(features[:count]), labels[:count])._value.backward(retain_graph=True)
            seen.append((module._norms(), [output.grad for output in module._outputs]))
        places = module._call[2]
        assert torch.equal(seen[0][0][places], seen[1][0][places])
        for longer, shorter in zip(seen[0][1], seen[1][1], strict=True):
            assert torch.equal(longer[:4], shorter)


# --- norms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_norms_of_linear_and_embedding_layers_agree_with_per_record_gradients(shape):
    torch.manual_seed(4)
    layers = nn.Sequential(nn.Embedding(5, 6, padding_idx=1), nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 2, bias=False))
    index = torch.randint(0, 5, (8, *shape)) if shape else torch.randint(0, 5, (8,))
    weights = torch.randn(8, *shape, 2)
    ghost = GhostRows(layers, rows=8)
    outputs = ghost(index)
    (outputs * weights).sum().backward()
    places = ghost._call[2]
    norms = ghost._norms()[places]
    ghost.remove_hooks()
    layers.zero_grad()
    for record in range(8):
        layers.zero_grad()
        (layers(index[record : record + 1]) * weights[record : record + 1]).sum().backward()
        squared = sum(float(p.grad.double().square().sum()) for p in layers.parameters())
        assert float(norms[record]) == pytest.approx(math.sqrt(squared), rel=1e-5)


def test_terms_that_cancel_within_a_record_do_not_hide_its_norm():
    """In float32 the squared norm below is a difference of numbers near 1e12: what is left of it is noise."""
    torch.manual_seed(5)
    layer = nn.Linear(300, 200, bias=False)
    module, optimizer, criterion = private(layer, rows=1, clip_norm=1.0)
    criterion.criterion = lambda outputs, weights: (outputs * weights).sum()
    value, error = torch.randn(300), torch.randn(200)
    drift = 1e-4 * torch.randn(300)
    features = torch.stack([value, value + drift])[None]
    weights = 50 * torch.stack([error, -error])[None]
    exact = torch.einsum("kn,km->nm", weights[0].double(), features[0].double())
    assert exact.norm() > 1.05
    total = clipped_sum(module, optimizer, criterion, features, weights)
    assert np.linalg.norm(total) <= optimizer.record_clip * (1 + 1e-3)


# --- records that are not finite ------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_poisoned_record_counts_as_absent_and_the_others_are_kept(poison, monkeypatch):
    monkeypatch.setattr("dp.record_level.batches.secure_random", lambda: stream(5))
    torch.manual_seed(6)
    module, optimizer, criterion = private(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    features, labels = blobs(4).tensors
    absent = clipped_sum(module, optimizer, criterion, features[:3], labels[:3])
    features[3] = poison
    present = clipped_sum(module, optimizer, criterion, features, labels)
    assert np.isfinite(present).all()
    assert optimizer.rejected_records == 1
    assert np.array_equal(present, absent)


def test_a_record_of_monstrous_gradient_is_clipped_or_absent():
    module, optimizer, criterion = private(nn.Linear(3, 2), rows=1)
    for size in (1e10, 1e25, 1e30, 3e38):
        for label in (0, 1):
            total = clipped_sum(module, optimizer, criterion, torch.full((1, 3), size), torch.tensor([label]))
            norm = float(np.linalg.norm(total))
            assert norm == 0 or norm == pytest.approx(optimizer.record_clip, rel=1e-6)
    assert optimizer.rejected_records > 0


def test_a_batch_of_poisoned_records_still_sends_its_noise():
    module, optimizer, criterion = private(nn.Linear(3, 2))
    criterion(module(torch.full((5, 3), math.nan)), torch.zeros(5, dtype=torch.long)).backward()
    assert optimizer.rejected_records == 5
    assert optimizer.contribution(rand=stream(1)).vector.shape == (8,)
    optimizer.abandon()
    criterion(module(torch.zeros(0, 3)), torch.zeros(0, dtype=torch.long)).backward()
    assert optimizer.contribution().vector.shape == (8,)
    assert len(optimizer.accountant) == 2


# --- refusals -------------------------------------------------------------------------------------------------------


def test_gradients_that_were_not_clipped_never_leave():
    module, optimizer, criterion = private(nn.Linear(3, 2))
    features, labels = blobs(4).tensors
    SUM_OF_LOSSES(module(features), labels).backward()
    for call in (optimizer.contribution, optimizer.clip_and_accumulate):
        with pytest.raises(UnsafeUpdateError, match="criterion that make_private returned"):
            call()
    optimizer.zero_grad()
    criterion(module(features), labels).backward()
    with pytest.raises(UnsafeUpdateError, match="step after each"):
        criterion(module(features), labels).backward()
    assert len(optimizer.accountant) == 0


def test_a_loss_that_skips_outputs_or_parameters_is_refused():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, features):
            return self.used(features), self.unused(features)

    module, _, criterion = private(Two())
    features, labels = blobs(4).tensors
    with pytest.raises(UnsafeUpdateError, match="output of the module"):
        criterion(module(features)[0], labels).backward()
    lonely = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    lonely.forward = lambda features: lonely["used"](features)
    module, _, criterion = private(lonely)
    with pytest.raises(UnsafeUpdateError, match="requires_grad_"):
        criterion(module(features), labels).backward()
    loss = criterion(module(features), labels)
    module._forget()
    with pytest.raises(UnsafeUpdateError, match="forward"):
        loss._module.hand_over(loss._optimizer)


def test_a_forward_pass_without_backward_is_forgotten():
    torch.manual_seed(7)
    module, optimizer, criterion = private(NextWord())
    features, labels = MODELS["gru"][1](6)
    module(features[:3])
    once = clipped_sum(module, optimizer, criterion, features, labels)
    np.testing.assert_allclose(once, clipped_sum(module, optimizer, criterion, features, labels), atol=1e-6)


def test_a_weight_used_outside_its_layer_is_refused():
    """Autograd sums such a use up, and no layer norms it: a record came out three times longer than its clip."""

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.out = nn.Linear(4, 6, bias=False), nn.Linear(6, 4)

        def forward(self, features):
            return nn.functional.linear(self.out(torch.tanh(self.read(features))), self.read.weight)

    torch.manual_seed(0)
    module, optimizer, criterion = private(Behind(), rows=1)
    with pytest.raises(UnsafeUpdateError, match=r"read\.weight enters the outputs 2 times"):
        clipped_sum(module, optimizer, criterion, 100 * torch.randn(1, 4), torch.tensor([2]))


@pytest.mark.parametrize("build", [private, exact_pair], ids=["sum", "exact"])
def test_a_layer_whose_rows_are_no_records_is_refused(build):
    """Each of its rows was clipped on its own: a record of six rows moved the sum by far more than the bound."""

    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, features):
            count, places, width = features.shape
            return self.layer(features.reshape(count * places, width)).reshape(count, places, -1).mean(1)

    module = build(Flattened(), rows=2)[0]
    with pytest.raises(UnsafeUpdateError, match=r"shape \(12, 4\) in a batch of 2 rows"):
        module(100 * torch.randn(1, 6, 4))


def test_a_layer_used_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, features):
            return self.layer(self.layer(features))

    module, _, _ = private(Twice())
    with pytest.raises(UnsafeUpdateError, match="twice"):
        module(torch.ones(2, 3))


def test_more_terms_than_the_margin_covers_are_refused_unless_in_float64():
    assert terms_covered(list(nn.Linear(2, 2).parameters())) == 256**2
    module, optimizer, criterion = private(nn.Linear(3, 2), rows=257)
    features, labels = blobs(4).tensors
    with pytest.raises(UnsafeUpdateError, match="66049 terms"):
        criterion(module(features), labels).backward()
    optimizer.restart()
    module, _, criterion = private(nn.Linear(3, 2).double(), rows=257)
    criterion(module(features.double()), labels).backward()
    # Places count: 16 rows of 6 x 6 places of a convolution.
    module, optimizer, criterion = private(small_cnn(), rows=16)
    criterion(module(torch.zeros(2, 1, 8, 8)), torch.zeros(2, dtype=torch.long)).backward()
    assert optimizer._terms == 16 * 16 * 36
    optimizer.clip_and_accumulate()

    def one_more() -> None:
        criterion(module(torch.zeros(2, 1, 8, 8)), torch.zeros(2, dtype=torch.long)).backward()
        optimizer.clip_and_accumulate()

    for _ in range(6):  # physical batches of one logical batch add up
        one_more()
    with pytest.raises(UnsafeUpdateError, match="lower physical_batch_size"):
        one_more()


def test_reduced_precision_is_refused():
    module, _, _ = private(nn.Linear(3, 2))
    with torch.autocast("cpu"), pytest.raises(UnsafeUpdateError, match="autocast"):
        module(torch.ones(2, 3))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(UnsafeUpdateError, match="float32_matmul_precision"):
            module(torch.ones(2, 3))
    finally:
        torch.set_float32_matmul_precision(before)
    with pytest.raises(ValueError, match="bfloat16"):
        private(nn.Linear(3, 2).to(torch.bfloat16))


def test_per_record_gradients_do_not_enter_a_unit_that_rounds_sums_and_the_reverse():
    module = nn.Linear(3, 2)
    _, optimizer, _ = private(module)
    exact = RecordLevel(clip_norm=0.5, epsilon=8.0, delta=DELTA, rounds=20, sampling_rate=1.0, records=100)
    with pytest.raises(ValueError, match="rounding"):
        SecureDPOptimizer(
            optimizer.original_optimizer, unit=exact, mechanism=optimizer.mechanism, accountant=SkellamAccountant()
        )
    per_record = nn.Linear(3, 2)
    wrapped = GradSampleModule(per_record, loss_reduction="sum")
    SUM_OF_LOSSES(wrapped(torch.ones(2, 3)), torch.zeros(2, dtype=torch.long)).backward()
    sums = SecureDPOptimizer(
        torch.optim.SGD(per_record.parameters(), lr=0.5), unit=optimizer.unit, mechanism=optimizer.mechanism,
        accountant=SkellamAccountant(),
    )  # fmt: skip
    with pytest.raises(UnsafeUpdateError, match="criterion"):
        sums.contribution()
    _, exactly = exact_pair(nn.Linear(3, 2))
    with pytest.raises(UnsafeUpdateError, match="per record"):
        exactly.take_sum(terms=1, rejected=0)


# --- engine and accounting ------------------------------------------------------------------------------------------


def arguments(module: nn.Module, **options):
    return {
        "module": module,
        "optimizer": torch.optim.SGD(module.parameters(), lr=0.5),
        "data_loader": DataLoader(blobs(200)),
        "unit": unit(rate=0.25),
        "clients": 4,
        "min_survivors": 2,
        "max_colluders": 0,
        "loss_reduction": "sum",
        "grad_sample_mode": "ghost",
        "criterion": nn.CrossEntropyLoss(reduction="sum"),
        **options,
    }


def test_an_ordinary_loop_learns_and_its_events_say_how_they_were_rounded():
    engine = SecurePrivacyEngine()
    model, optimizer, criterion, loader = engine.make_private(
        **arguments(nn.Linear(3, 2), aggregate=lambda share: (share.vector, 2))
    )
    for _ in range(5):
        for features, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(features), labels)
            loss.backward()
            optimizer.step()
            assert loss.item() == float(loss.detach())
    features, labels = blobs(200).tensors
    with torch.no_grad():
        assert (model(features).argmax(1) == labels).float().mean() > 0.9
    assert 7.9 < engine.get_epsilon(DELTA) <= 8
    ((event, count),) = engine.accountant.history
    assert (event.rounding, count) == ("sum", 20)
    assert event.to_dict()["rounding"] == "sum"
    assert SkellamEvent.from_dict(event.to_dict()) == event
    assert event.l2_squared == optimizer.mechanism.int_bound**2


def test_physical_batches_make_one_sum_one_rounding_and_one_event():
    torch.manual_seed(8)
    module = nn.Linear(3, 2)
    sent = []

    def aggregate(share):
        sent.append(share.vector)
        return share.vector, 2

    whole = RecordLevel(
        clip_norm=1.0, epsilon=1e25, delta=DELTA, rounds=20, sampling_rate=1.0, records=40, rounding="sum"
    )
    quiet = DistributedSkellam(
        int_bound=4096, share_variance=Fraction(1, 2**22), dimension=8, clients=4, min_survivors=2, max_colluders=0,
        sampling_rate=Fraction(1), rounding="sum",
    )  # fmt: skip
    given = arguments(module, aggregate=aggregate, unit=whole, mechanism=quiet, physical_batch_size=4)
    given |= {"clients": None, "min_survivors": None, "max_colluders": None, "data_loader": DataLoader(blobs(10))}
    given["optimizer"] = torch.optim.SGD(module.parameters(), lr=0.0)
    model, optimizer, criterion, loader = SecurePrivacyEngine().make_private(**given)
    for batches in (loader, None):
        with BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=optimizer) as split:
            for features, labels in batches or split:
                optimizer.zero_grad()
                criterion(model(features), labels).backward()
                optimizer.step()
    assert len(sent) == len(optimizer.accountant) == 2
    assert np.abs(sent[0] - sent[1]).max() <= 1  # the same records, one rounding each with other coins


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad_sample_mode": "hooks"}, "must be 'ghost'"),
        ({"criterion": None}, "needs the criterion"),
        ({"criterion": nn.functional.cross_entropy}, "does not say how it reduces"),
        ({"criterion": partial(nn.functional.cross_entropy, reduction="mean")}, "criterion.reduction"),
        ({"criterion": nn.CrossEntropyLoss()}, "criterion.reduction"),
    ],
)
def test_modes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SecurePrivacyEngine().make_private(**arguments(nn.Linear(3, 2)) | change)


def test_tied_weights_are_refused():
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    with pytest.raises(ValueError, match=r"0\.weight and 2\.weight are tied"):
        SecurePrivacyEngine().make_private(**arguments(module))


def test_calibration_leaves_rounding_a_twenty_fourth_of_the_bound_where_shares_allow():
    for dimension in (650, 50_000, 1_200_000):
        mechanism = calibrate(unit(rate=0.05), dimension=dimension, clients=20, min_survivors=15, max_colluders=3)
        assert mechanism.rounding == "sum"
        assert mechanism.int_bound >= 24 * math.sqrt(dimension)
        encoder = IntegerEncoder(clip_norm=1.0, int_bound=mechanism.int_bound)
        assert sum_clip(encoder, dimension) > 0.94


def test_unknown_roundings_are_refused():
    with pytest.raises(ValueError, match="nearest"):
        RecordLevel(clip_norm=1.0, epsilon=1.0, delta=DELTA, rounds=1, sampling_rate=1.0, records=1, rounding="nearest")
    event = SkellamEvent(l2_squared=Fraction(4), l1=Fraction(4), variance=Fraction(4), dimension=1)
    assert "rounding" not in event.to_dict()
    with pytest.raises(ValueError, match="nearest"):
        SkellamEvent(l2_squared=Fraction(4), l1=Fraction(4), variance=Fraction(4), dimension=1, rounding="nearest")


class Amplified(torch.autograd.Function):
    """In every second backward pass, rows that begin with 7 get a gradient a hundred times as long."""

    passes = 0

    @staticmethod
    def forward(ctx, features, outputs):
        ctx.save_for_backward(features)
        return outputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        (features,) = ctx.saved_tensors
        Amplified.passes += 1
        hidden = (features[:, 0] == 7)[:, None] & (Amplified.passes % 2 == 0)
        return None, torch.where(hidden, 100 * gradient, gradient)


def test_a_record_that_is_longer_in_the_pass_that_sums_counts_as_absent(monkeypatch):
    monkeypatch.setattr("dp.record_level.batches.secure_random", lambda: stream(5))

    class TwoFaced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, features):
            return Amplified.apply(features, self.layer(features))

    torch.manual_seed(9)
    module, optimizer, criterion = private(TwoFaced())
    features, labels = blobs(4).tensors
    absent = clipped_sum(module, optimizer, criterion, features[:3], labels[:3])
    Amplified.passes = 0
    features[3, 0] = 7
    present = clipped_sum(module, optimizer, criterion, features, labels)
    assert optimizer.rejected_records == 1
    assert np.array_equal(present, absent)

"""Opacus bridge: the integer bound, one record's influence, secret batches, and an accountant that nothing resets."""

import json
import math
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from opacus.accountants import create_accountant
from opacus.grad_sample import GradSampleModule
from opacus.layers import DPLSTM
from opacus.utils.batch_memory_manager import BatchMemoryManager
from opacus.validators.errors import UnsupportedModuleError
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from dp.accounting import epsilon
from dp.encoding import IntegerEncoder
from dp.errors import CapacityError, UnaccountableError, UnsafeUpdateError
from dp.mechanisms import DistributedSkellam
from dp.record_level import SecretPoissonSampler, SecureDPOptimizer, SecurePrivacyEngine, SkellamAccountant
from dp.record_level.batches import FixedRows, default_rows, random_places
from dp.record_level.optimizer import encode_rows
from dp.samplers import RandomBytes
from dp.units import RecordLevel

DELTA = 1e-6
NO_NOISE = Fraction(1, 2**22)  # a share that is zero but for one draw in millions


def stream(key: int) -> RandomBytes:
    keystream = Cipher(AES256(key.to_bytes(32, "big")), CTR(bytes(16))).encryptor()
    return lambda size: keystream.update(bytes(size))


def record_unit(*, rate: float = 1.0, records: int = 100, clip_norm: float = 1.0) -> RecordLevel:
    return RecordLevel(clip_norm=clip_norm, epsilon=8.0, delta=DELTA, rounds=20, sampling_rate=rate, records=records)


def skellam(module: nn.Module, unit: RecordLevel, *, int_bound=4096, share_variance=Fraction(4096**2)):
    return DistributedSkellam(
        int_bound=int_bound,
        share_variance=share_variance,
        dimension=sum(parameter.numel() for parameter in module.parameters()),
        clients=4,
        min_survivors=2,
        max_colluders=0,
        sampling_rate=unit.exact_rate,
    )


def private(module: nn.Module, *, rows: int = 16, unit: RecordLevel | None = None, aggregate=None, **options):
    """A module and optimizer without engine or loader."""
    unit = replace(unit or record_unit(), epsilon=1e25)  # next to no noise
    optimizer = SecureDPOptimizer(
        torch.optim.SGD(module.parameters(), lr=0.5),
        unit=unit,
        mechanism=skellam(module, unit, **options),
        accountant=SkellamAccountant(),
        aggregate=aggregate,
    )
    return FixedRows(module, rows=rows), optimizer


def backward(module: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> None:
    cross_entropy(module(features), labels, reduction="sum").backward()


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def blobs(count: int, seed: int = 0) -> TensorDataset:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    features = rng.normal(size=(count, 3)) + np.where(labels, 1.5, -1.5)[:, None]
    return TensorDataset(torch.tensor(features, dtype=torch.float32), torch.tensor(labels))


def squared_norm(integers: np.ndarray) -> int:
    return sum(int(q) ** 2 for q in integers.tolist())


# --- one record's integers ------------------------------------------------------------------------------------------

NASTY = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e38, -3e38, 1e-45, 1e-38, math.nan, math.inf, -math.inf])
GRADIENTS = arrays(np.float32, (3, 17), elements=st.one_of(NASTY, st.floats(-1e3, 1e3, width=32)))


def encode(gradients: np.ndarray, coins: np.ndarray, encoder: IntegerEncoder) -> tuple[np.ndarray, int]:
    """Split into two parameters, as a model would."""
    rows = torch.tensor(gradients)
    return encode_rows([rows[:, :5], rows[:, 5:]], coins=coins, encoder=encoder)


@given(gradients=GRADIENTS, bound=st.sampled_from([33, 100, 10_000, 1 << 26]), seed=st.integers(0, 99))
def test_every_record_obeys_the_integer_bound_and_only_non_finite_ones_vanish(gradients, bound, seed):
    encoder = IntegerEncoder(clip_norm=1.0, int_bound=bound)
    coins = np.random.default_rng(seed).integers(0, 2**32, 17) * 2.0**-32
    total = np.zeros(17)
    for row in range(3):
        alone = np.zeros_like(gradients)
        alone[row] = gradients[row]
        integers, rejected = encode(alone, coins, encoder)
        total += integers
        assert np.array_equal(integers, np.trunc(integers))
        assert squared_norm(integers) <= bound**2
        assert rejected == (not np.isfinite(gradients[row]).all())
        if rejected:
            assert not integers.any()
        else:
            norm = math.sqrt(sum(float(x) ** 2 for x in gradients[row]))
            shrunk = gradients[row].astype(np.float64) * bound * min(1, encoder.first_clip(17) / max(norm, 1e-99))
            assert np.abs(integers - shrunk).max() < 1 + 1e-6 * bound
    together, rejected = encode(gradients, coins, encoder)
    assert np.array_equal(together, total)
    assert rejected == 3 - np.isfinite(gradients).all(axis=1).sum()


@pytest.mark.parametrize("length", [4, 100, 5000])
@pytest.mark.parametrize("coin", [0, 2**32 - 1])
def test_coins_that_all_round_one_way_break_neither_this_bound_nor_the_encoders(length, coin):
    bound = math.isqrt(64 * length - 1) + 1
    encoder = IntegerEncoder(clip_norm=1.0, int_bound=bound)
    # Just above an integer in every coordinate: with the highest coin, each is lifted by nearly one.
    height = math.floor(encoder.first_clip(length) * bound / math.sqrt(length)) + 1e-3
    gradient = np.full(length, height / bound)
    here, _ = encode_rows([torch.tensor(gradient)[None]], coins=np.full(length, coin * 2.0**-32), encoder=encoder)
    there = encoder.encode(gradient, rand=lambda size: coin.to_bytes(4, "little") * (size // 4))
    assert squared_norm(here) <= bound**2
    assert squared_norm(there) <= bound**2
    assert np.abs(here - there).max() <= 1


def test_overshooting_records_are_lowered_and_the_others_kept():
    length, bound = 400, 170
    encoder = IntegerEncoder(clip_norm=1.0, int_bound=bound)
    coins = np.full(length, 1 - 2.0**-32)
    height = math.floor(encoder.first_clip(length) * bound / math.sqrt(length)) + 1e-3
    rows = torch.zeros(3, length, dtype=torch.float64)
    rows[1] = height / bound
    rows[2, 0] = 0.5
    lifted = math.ceil(height)
    assert length * lifted**2 > bound**2  # the precondition: row 1 overshoots
    total, _ = encode_rows([rows], coins=coins, encoder=encoder)
    other = np.zeros(length)
    other[0] = math.floor(0.5 * bound + coins[0])
    assert squared_norm(total - other) <= bound**2
    assert (total - other).min() >= height - 1


# --- removing a record ----------------------------------------------------------------------------------------------


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.read = DPLSTM(6, 7, batch_first=True)
        self.out = nn.Linear(7, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.read(self.embed(tokens))[0][:, -1])


MODELS = {
    "linear": (lambda: nn.Linear(64, 3), lambda count: torch.randn(count, 64)),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(200, 64), nn.Tanh(), nn.Linear(64, 3)),
        lambda count: torch.randn(count, 200),
    ),
    "cnn": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)),
        lambda count: torch.randn(count, 1, 8, 8),
    ),
    "lstm": (Reader, lambda count: torch.randint(0, 11, (count, 5))),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [1, 2, 4, 10])
def test_removing_any_record_moves_the_integer_sum_by_that_records_integers(name, count, monkeypatch):
    monkeypatch.setattr("dp.record_level.batches.secure_random", lambda: stream(5))
    build, draw = MODELS[name]
    torch.manual_seed(1)
    module, optimizer = private(build(), unit=record_unit(clip_norm=0.1))
    features, labels = draw(count), torch.randint(0, 3, (count,))
    bound = optimizer.mechanism.int_bound

    def run(members: list[int]) -> tuple[np.ndarray, dict[int, torch.Tensor]]:
        backward(module, features[members], labels[members])
        rows = torch.cat([parameter.grad_sample.flatten(1) for parameter in module.parameters()], dim=1)
        present = rows[rows.any(dim=1)]
        vector = optimizer.contribution(rand=stream(6)).vector
        optimizer.abandon()
        return vector, present

    for removed in range(count):
        # The removed record comes last: the places of the others are then the same with and without it.
        others = [record for record in range(count) if record != removed]
        with_it, rows = run([*others, removed])
        without, fewer = run(others)
        moved = with_it - without
        assert 0 < squared_norm(moved) <= bound**2
        # Not only the sum: every other record's gradient is the same to the last bit.
        assert len(rows) == count
        assert len(fewer) == count - 1
        assert {row.numpy().tobytes() for row in fewer} < {row.numpy().tobytes() for row in rows}


def test_a_poisoned_record_counts_as_absent_and_noise_is_still_sent(monkeypatch):
    monkeypatch.setattr("dp.record_level.batches.secure_random", lambda: stream(5))
    features, labels = blobs(4).tensors
    module, optimizer = private(linear())
    backward(module, features[:3], labels[:3])
    absent = optimizer.contribution(rand=stream(1)).vector
    optimizer.abandon()
    for poison in (math.nan, math.inf, 3e38):
        features[3] = poison
        before = optimizer.rejected_records
        backward(module, features, labels)
        present = optimizer.contribution(rand=stream(1)).vector
        optimizer.abandon()
        assert optimizer.rejected_records == before + (not math.isfinite(poison) or bool((present == absent).all()))
        assert squared_norm(present - absent) <= optimizer.mechanism.int_bound**2
    assert optimizer.rejected_records >= 2
    assert len(optimizer.accountant) == 4


# --- layout and batches ---------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["features", "labels"])


class Picky(nn.Module):
    """Keywords, non-tensors and nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, features, *, shift, power=1):
        outputs = self.layer(features + shift) ** power
        return {"logits": outputs, "both": (outputs, [shift]), "pair": Pair(outputs, shift)}


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 17])
def test_the_caller_sees_its_own_records_in_order_and_blank_rows_get_no_gradient(count):
    plain = Picky()
    module = FixedRows(plain, rows=8)
    features, shift = torch.randn(count, 3), torch.randn(count, 3)
    with torch.no_grad():
        expected = plain.layer(features + shift) ** 2
    outputs = module(features, shift=shift, power=2)
    torch.testing.assert_close(outputs["logits"], expected)
    torch.testing.assert_close(outputs["both"][0], expected)
    assert torch.equal(outputs["both"][1][0], shift)
    assert torch.equal(outputs["pair"].labels, shift)
    outputs["logits"].sum().backward()
    rows = plain.layer.bias.grad_sample
    assert len(rows) == 8 * max(1, math.ceil(count / 8))
    assert int(rows.any(dim=1).sum()) == count
    torch.testing.assert_close(rows.sum(0), plain.layer.bias.grad)  # a sum, not divided by any number of records


def test_every_record_is_equally_likely_to_lie_in_every_row():
    rand = stream(0)
    counts = np.zeros((3, 8))
    for _ in range(4000):
        places = random_places(3, 8, rand=rand)
        assert len(set(places.tolist())) == 3
        counts[range(3), places] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 21 + 5 * math.sqrt(42)


def test_places_are_fresh_in_every_forward_pass():
    module = FixedRows(nn.Linear(3, 2), rows=64)
    used = set()
    for _ in range(3):
        module(torch.ones(5, 3)).sum().backward()
        used.add(tuple(module._module.bias.grad_sample.any(dim=1).tolist()))
        module.zero_grad()
    assert len(used) == 3


def test_outside_training_the_module_is_itself():
    plain = linear()
    module = FixedRows(plain, rows=8)
    features = torch.randn(5, 3)
    with torch.no_grad():
        assert torch.equal(module(features), plain(features))
    module.eval()
    assert torch.equal(module(features), plain(features))
    assert module.state_dict().keys() == plain.state_dict().keys()
    module.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    assert torch.equal(plain.weight, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (nn.Linear(3, 2), (torch.tensor(1.0),)),
        (nn.Linear(3, 2), ()),
        (nn.Bilinear(3, 3, 2), (torch.ones(4, 3), torch.ones(5, 3))),
        (nn.Sequential(nn.Linear(3, 2), nn.Flatten(0)), (torch.ones(4, 3),)),
    ],
)
def test_tensors_without_one_row_per_record_are_refused(module, arguments):
    with pytest.raises(UnsafeUpdateError, match="one row per record"):
        FixedRows(module, rows=8)(*arguments)


def test_outputs_that_hide_tensors_are_refused():
    class Opaque(nn.Sequential):
        def forward(self, features):
            return {"logits": super().forward(features), "step": 3}

    with pytest.raises(UnsafeUpdateError, match="int"):
        FixedRows(Opaque(nn.Linear(3, 2)), rows=8)(torch.ones(4, 3))


def test_rows_must_be_positive_and_the_default_fits_nearly_every_draw():
    with pytest.raises(ValueError, match="rows"):
        FixedRows(nn.Linear(3, 2), rows=0)
    assert default_rows(64, rate=1.0) == 64
    assert default_rows(1, rate=1e-9) == 16
    assert default_rows(1000, rate=0.1) >= 100 + 4 * math.sqrt(90)


@given(length=st.integers(1, 40), rate=st.fractions(Fraction(1, 2**64), 1), key=st.integers(0, 2**32))
def test_a_record_is_drawn_exactly_when_its_word_is_below_the_rate(length, rate, key):
    drawn = SecretPoissonSampler(length, rate=rate, rand=stream(key)).draw()
    words = stream(key)(8 * length)
    limit = math.floor(rate * 2**64)
    assert drawn == [
        index for index in range(length) if int.from_bytes(words[8 * index : 8 * index + 8], "little") < limit
    ]


def test_a_word_equal_to_the_limit_is_not_drawn():
    words = [2**63, 2**63 - 1, 2**64 - 1, 0]
    sampler = SecretPoissonSampler(4, rate=0.5, rand=lambda _: b"".join(word.to_bytes(8, "little") for word in words))
    assert sampler.draw() == [1, 3]


def test_draws_have_the_law_of_independent_coins():
    sampler = SecretPoissonSampler(100, rate=0.1, rand=stream(0))
    draws = [sampler.draw() for _ in range(2000)]
    assert len(sampler) == len(list(sampler)) == 9  # the float 0.1 is above one tenth
    counts = np.bincount(np.concatenate(draws).astype(int), minlength=100)
    assert ((counts - 200) ** 2 / 180).sum() < 100 + 5 * math.sqrt(200)
    assert np.var([len(draw) for draw in draws]) == pytest.approx(9, rel=0.2)


@pytest.mark.parametrize(("length", "rate"), [(0, 0.5), (5, 0.0), (5, 1.5), (5, math.nan)])
def test_sampler_bounds(length, rate):
    with pytest.raises(ValueError, match="must"):
        SecretPoissonSampler(length, rate=rate)


# --- rounds ---------------------------------------------------------------------------------------------------------


def test_an_empty_batch_sends_exactly_one_noise_share():
    module, optimizer = private(linear())
    share = optimizer.contribution(rand=stream(3)).vector
    assert np.array_equal(share, optimizer.mechanism.noise_share(rand=stream(3)))
    optimizer.abandon()
    backward(module, torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    coins_then_noise = stream(3)
    coins_then_noise(4 * optimizer.mechanism.dimension)
    share = optimizer.contribution(rand=stream(3)).vector
    assert np.array_equal(share, optimizer.mechanism.noise_share(rand=coins_then_noise))
    optimizer.abandon()
    first, second = (optimizer.contribution().vector, optimizer.abandon(), optimizer.contribution().vector)[::2]
    assert not np.array_equal(first, second)


def test_a_contribution_is_the_rounded_gradient_plus_a_share_from_the_same_stream():
    module, optimizer = private(linear(), unit=record_unit(clip_norm=100.0))
    mechanism = optimizer.mechanism
    backward(module, *(tensor[:1] for tensor in blobs(1).tensors))
    gradient = np.concatenate(
        [parameter.grad_sample.sum(0).flatten().numpy() for parameter in module.parameters()]
    ).astype(np.float64)
    assert 0 < np.linalg.norm(gradient) < 90  # not clipped
    rand = stream(9)
    coins = np.frombuffer(rand(4 * mechanism.dimension), dtype="<u4") * 2.0**-32
    expected = np.floor(gradient * mechanism.int_bound / 100.0 + coins) + mechanism.noise_share(rand=rand)
    assert np.array_equal(optimizer.contribution(rand=stream(9)).vector, expected)


def test_a_round_goes_contribution_then_apply_and_nothing_else():
    module, optimizer = private(linear())
    zeros = np.zeros(optimizer.mechanism.dimension, dtype=np.int64)
    with pytest.raises(UnaccountableError, match="contribution"):
        optimizer.apply(zeros, survivors=2)
    backward(module, *blobs(5).tensors)
    with pytest.raises(UnaccountableError, match="apply"):
        optimizer.step()
    share = optimizer.contribution()
    with pytest.raises(UnaccountableError, match="already"):
        optimizer.contribution()
    for bad in (zeros.astype(np.int32), zeros[:-1]):
        with pytest.raises(UnsafeUpdateError, match="int64"):
            optimizer.apply(bad, survivors=2)
    with pytest.raises(UnaccountableError, match="survivors"):
        optimizer.apply(share.vector, survivors=1)
    with pytest.raises(ValueError, match="survivors"):
        optimizer.apply(share.vector, survivors=5)
    optimizer.apply(share.vector, survivors=2)
    assert all(parameter.grad is None for parameter in module.parameters())
    with pytest.raises(UnaccountableError, match="contribution"):
        optimizer.apply(share.vector, survivors=2)


def test_the_step_is_the_clipped_mean_over_the_public_denominator():
    unit = record_unit(rate=0.5, records=80, clip_norm=0.7)
    plain = linear()
    module, optimizer = private(plain, unit=unit, share_variance=NO_NOISE, int_bound=1 << 20)
    features, labels = blobs(12).tensors
    before = [parameter.detach().clone() for parameter in plain.parameters()]
    backward(module, features, labels)
    rows = [parameter.grad_sample.double() for parameter in plain.parameters()]
    norms = torch.sqrt(sum(row.flatten(1).square().sum(1) for row in rows))
    assert (norms > 0.7).any()
    assert (norms < 0.7).any()
    factors = (0.7 / norms).clamp(max=1)[norms > 0]
    share = optimizer.contribution()
    optimizer.apply(share.vector, survivors=3)
    # 80 records over 4 clients at rate 1/2 are 10 expected records per client, 30 for three survivors.
    for parameter, old, row in zip(plain.parameters(), before, rows, strict=True):
        expected = old - 0.5 * torch.einsum("r,r...->...", factors, row[norms > 0]) / 30
        torch.testing.assert_close(parameter.detach(), expected.float(), rtol=1e-4, atol=1e-5)


def test_step_hooks_and_closures_run():
    module, optimizer = private(linear(), aggregate=lambda share: (share.vector, 2))
    seen = []
    optimizer.attach_step_hook(lambda which: seen.append(which.accumulated_iterations))
    optimizer.step(lambda: backward(module, *blobs(5).tensors))
    assert seen == [1]
    assert len(optimizer.accountant) == 1


@pytest.mark.parametrize(("attribute", "value"), [("noise_multiplier", 0.1), ("max_grad_norm", 9.0)])
def test_a_scheduler_that_changes_noise_or_clip_is_refused(attribute, value):
    _, optimizer = private(linear())
    setattr(optimizer, attribute, value)
    with pytest.raises(UnaccountableError, match="scheduler"):
        optimizer.contribution()
    assert len(optimizer.accountant) == 0


def test_unusable_gradients_are_refused_before_anything_is_charged():
    module = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = module

        def forward(self, features):
            return self.layers[0](features)

    wrapped, optimizer = private(First())
    backward(wrapped, *blobs(4).tensors)
    with pytest.raises(UnsafeUpdateError, match="requires_grad_"):
        optimizer.contribution()
    wrapped, optimizer = private(linear())
    backward(wrapped, *blobs(4).tensors)
    with pytest.raises(ValueError, match="accumulation"):
        backward(wrapped, *blobs(4).tensors)
    with pytest.raises(UnsafeUpdateError, match="several backward passes"):
        optimizer.contribution()
    wrapped, optimizer = private(linear())
    backward(wrapped, *blobs(4).tensors)
    wrapped._module.bias.grad_sample = wrapped._module.bias.grad_sample[1:]
    with pytest.raises(UnsafeUpdateError, match="disagree"):
        optimizer.contribution()
    assert len(optimizer.accountant) == 0


def test_a_mechanism_for_another_model_or_unit_is_refused():
    module, unit = linear(), record_unit()
    sgd = torch.optim.SGD(module.parameters(), lr=0.1)

    def build(mechanism: DistributedSkellam) -> None:
        SecureDPOptimizer(sgd, unit=unit, mechanism=mechanism, accountant=SkellamAccountant())

    with pytest.raises(ValueError, match="coordinates"):
        build(skellam(nn.Linear(4, 2), unit))
    with pytest.raises(ValueError, match="rate"):
        build(skellam(module, record_unit(rate=0.5)))
    with pytest.raises(CapacityError):
        build(skellam(module, unit, int_bound=20))


# --- logical batches in physical pieces -----------------------------------------------------------------------------


def pieces(count: int, *, aggregate):
    """An engine-made trio whose every logical batch is all `count` records, nearly without noise."""
    module = linear()
    unit = replace(record_unit(records=4 * count), epsilon=1e25)
    module, optimizer, loader = SecurePrivacyEngine().make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.0),
        data_loader=DataLoader(blobs(count), batch_size=5),
        unit=unit,
        mechanism=skellam(module, unit, share_variance=NO_NOISE),
        aggregate=aggregate,
        loss_reduction="sum",
        physical_batch_size=4,
    )
    return module, optimizer, loader


def test_physical_batches_make_one_contribution_and_one_event():
    sent = []

    def aggregate(share):
        sent.append(share.vector)
        return share.vector, 2

    module, optimizer, loader = pieces(10, aggregate=aggregate)
    for features, labels in loader:
        backward(module, features, labels)
        optimizer.step()
    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=optimizer) as split:
        sizes = []
        for features, labels in split:
            sizes.append(len(features))
            optimizer.zero_grad()
            backward(module, features, labels)
            optimizer.step()
    assert sizes == [4, 3, 3]
    assert len(sent) == len(optimizer.accountant) == 2
    assert np.abs(sent[0] - sent[1]).max() <= 10  # learning rate 0: the same ten records, other rounding coins


def test_without_aggregate_pieces_are_stepped_and_the_last_one_contributed():
    module, optimizer, loader = pieces(10, aggregate=None)
    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=optimizer) as split:
        for features, labels in split:
            backward(module, features, labels)
            if optimizer.more_to_come:
                with pytest.raises(UnaccountableError, match="continues"):
                    optimizer.contribution()
                optimizer.step()
                optimizer.zero_grad()
            else:
                share = optimizer.contribution()
    assert share.vector.any()
    assert len(optimizer.accountant) == 1


def test_a_logical_batch_that_was_broken_off_never_joins_the_next():
    sent = []

    def aggregate(share):
        sent.append(share.vector)
        return share.vector, 2

    module, optimizer, loader = pieces(10, aggregate=aggregate)
    for stop in (1, 99):
        with BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=optimizer) as split:
            for done, (features, labels) in enumerate(split):
                backward(module, features, labels)
                if done == stop:
                    break
                optimizer.step()
    backward(module, *blobs(10).tensors)
    optimizer.step()
    assert len(sent) == 2
    assert np.abs(sent[0] - sent[1]).max() <= 10


# --- accounting -----------------------------------------------------------------------------------------------------


def test_epsilon_is_that_of_the_rounds_as_they_went():
    _, optimizer = private(linear())
    mechanism = optimizer.mechanism
    for survivors in (2, 3, 4, 4):
        optimizer.apply(optimizer.contribution().vector, survivors=survivors)
    events = [mechanism.event(survivors=survivors) for survivors in (2, 3, 4, 4)]
    accountant = optimizer.accountant
    assert accountant.get_epsilon(DELTA) == epsilon(events, delta=DELTA)
    assert dict(accountant.history) == {events[0]: 1, events[1]: 1, events[2]: 2}
    assert len(accountant) == 4
    optimizer.contribution()  # under way: counted at its worst
    assert accountant.get_epsilon(DELTA) == epsilon([*events, events[0]], delta=DELTA)
    optimizer.abandon()
    assert accountant.get_epsilon(DELTA) == epsilon([*events, events[0]], delta=DELTA)


def test_a_failed_round_stays_charged_and_the_next_one_can_start():
    answers = iter([KeyboardInterrupt(), (None, 1), None])

    def aggregate(share):
        match next(answers):
            case BaseException() as failure:
                raise failure
            case (None, survivors):
                return share.vector, survivors
            case _:
                return share.vector, 4

    module, optimizer = private(linear(), aggregate=aggregate)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for failure in (KeyboardInterrupt, UnaccountableError):
        backward(module, *blobs(5).tensors)
        with pytest.raises(failure):
            optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    backward(module, *blobs(5).tensors)
    optimizer.step()
    worst, actual = (optimizer.mechanism.event(survivors=survivors) for survivors in (2, 4))
    assert dict(optimizer.accountant.history) == {worst: 2, actual: 1}


def test_accountant_state_survives_json_and_never_forgets():
    _, optimizer = private(linear())
    for survivors in (2, 3, 3):
        optimizer.apply(optimizer.contribution().vector, survivors=survivors)
    kept = optimizer.accountant
    state = json.loads(json.dumps(kept.state_dict()))
    fresh = create_accountant("skellam")
    fresh.load_state_dict(state)
    assert dict(fresh.history) == dict(kept.history)
    assert fresh.get_epsilon(DELTA) == kept.get_epsilon(DELTA)
    with pytest.raises(UnaccountableError, match="forget 3"):
        kept.load_state_dict(state)
    with pytest.raises(UnaccountableError, match="record"):
        fresh.step(noise_multiplier=1.0, sample_rate=0.1)
    event = optimizer.mechanism.event(survivors=4)
    with pytest.raises(UnaccountableError, match="not on record"):
        fresh.amend(event, event)
    destination = {"other": 1}
    assert kept.state_dict(destination) is destination
    assert destination["mechanism"] == SkellamAccountant.mechanism() == "skellam"


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": "rdp"},
        {"history": None},
        {"history": [[{"event": "skellam"}, 1]]},
        {"history": [["skellam", 1]]},
        {"history": [[{}, 0]]},
        {"history": [[{}, -1]]},
        {"history": [[{}, 1, 2]]},
    ],
)
def test_other_states_are_refused(change):
    state = {"mechanism": "skellam", "history": [], **change}
    with pytest.raises(UnaccountableError):
        SkellamAccountant().load_state_dict(state)


# --- engine ---------------------------------------------------------------------------------------------------------


def arguments(module: nn.Module | None = None, dataset: object = None, **options):
    module = linear() if module is None else module
    return {
        "module": module,
        "optimizer": torch.optim.SGD(module.parameters(), lr=0.2),
        "data_loader": DataLoader(blobs(60) if dataset is None else dataset, batch_size=20),
        "unit": record_unit(rate=0.25, records=240),
        "clients": 4,
        "min_survivors": 2,
        "max_colluders": 0,
        "loss_reduction": "sum",
        **options,
    }


def test_an_ordinary_opacus_loop_learns_and_spends(recwarn):
    dataset = blobs(200)
    engine = SecurePrivacyEngine()
    model, optimizer, loader = engine.make_private(
        **arguments(dataset=dataset, aggregate=lambda share: (share.vector, 2)) | {"unit": record_unit(rate=0.25)}
    )
    criterion = nn.CrossEntropyLoss(reduction="sum")

    def mean_loss() -> float:
        with torch.no_grad():
            return float(criterion(model(dataset.tensors[0]), dataset.tensors[1])) / 200

    assert engine.get_epsilon(DELTA) == 0
    before = mean_loss()
    for _ in range(5):
        for features, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(features), labels)
            loss.backward()
            optimizer.step()
    assert mean_loss() < before / 2
    assert len(engine.accountant) == 20
    # Calibrated for 20 rounds with two survivors: the budget is used up to the last bit of integer resolution.
    assert 7.9 < engine.get_epsilon(DELTA) <= 8
    assert not recwarn.list


def test_four_clients_learn_together_and_stay_bitwise_equal():
    clients = []
    for number, records in enumerate((30, 60, 90, 220)):
        clients.append(
            SecurePrivacyEngine().make_private(
                **arguments(dataset=blobs(records, seed=number), min_survivors=3)
                | {"unit": record_unit(rate=0.25, records=400)}
            )
        )
    for turn, batches in enumerate(zip(*(5 * list(loader) for _, _, loader in clients), strict=True)):
        shares = []
        for (model, optimizer, _), (features, labels) in zip(clients, batches, strict=True):
            optimizer.zero_grad()
            backward(model, features, labels)
            shares.append(optimizer.contribution().vector)
        survivors = shares[: 3 + turn % 2]  # every other round loses the fourth client, which still learns the sum
        for _, optimizer, _ in clients:
            optimizer.apply(np.sum(survivors, axis=0), survivors=len(survivors))
    states = [model.state_dict() for model, _, _ in clients]
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in states[0])
    features, labels = blobs(1000, seed=99).tensors
    with torch.no_grad():
        accuracy = (clients[0][0](features).argmax(1) == labels).float().mean()
    assert accuracy > 0.95
    # Unequal numbers of records, one public rate: the claim is the same for everybody, and within the budget.
    epsilons = {optimizer.accountant.get_epsilon(DELTA) for _, optimizer, _ in clients}
    assert len(epsilons) == 1
    assert 0 < epsilons.pop() < 8


def test_batches_do_not_follow_pytorchs_seed():
    def batches() -> list[list[float]]:
        torch.manual_seed(7)
        _, _, loader = SecurePrivacyEngine().make_private(**arguments(dataset=blobs(300)))
        torch.manual_seed(7)
        return [features.flatten().tolist() for features, _ in loader]

    first, second = batches(), batches()
    assert all(one != other for one, other in zip(first, second, strict=True))


class Rows(torch.utils.data.Dataset):
    def __init__(self, make) -> None:
        self.make = make

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> object:
        return self.make(torch.full((2, 5), float(index)), index)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda features, label: (features, label), lambda batch: (batch[0], batch[1])),
        (lambda features, label: {"x": features, "y": label}, lambda batch: (batch["x"], batch["y"])),
        (Pair, lambda batch: (batch.features, batch.labels)),
    ],
)
def test_an_empty_batch_has_the_shape_of_the_others_and_no_rows(make, parts):
    unit = RecordLevel(clip_norm=1.0, epsilon=1.0, delta=DELTA, rounds=1, sampling_rate=2.0**-60, records=12)
    _, _, loader = SecurePrivacyEngine().make_private(**arguments(dataset=Rows(make)) | {"unit": unit})
    assert isinstance(loader.batch_sampler, SecretPoissonSampler)
    features, labels = parts(next(iter(loader)))
    assert features.shape == (0, 2, 5)
    assert features.dtype == torch.float32
    assert labels.shape == (0,)
    assert labels.dtype == torch.int64


def test_a_rebuilt_engine_or_a_replaced_hook_resets_nothing():
    dataset = blobs(60)
    spent = [0.0]
    for _ in range(3):
        engine = SecurePrivacyEngine()
        _, optimizer, _ = engine.make_private(**arguments(dataset=dataset, aggregate=lambda share: (share.vector, 2)))
        optimizer.attach_step_hook(lambda _: None)
        optimizer.step()
        spent.append(engine.get_epsilon(DELTA))
    assert spent == sorted(set(spent))
    with pytest.raises(UnaccountableError, match="another accountant"):
        SecurePrivacyEngine(accountant=SkellamAccountant()).make_private(**arguments(dataset=dataset))
    with pytest.raises(UnaccountableError, match="another data set"):
        engine.make_private(**arguments(dataset=blobs(60)))
    resumed = SecurePrivacyEngine(accountant=engine.accountant)
    resumed.make_private(**arguments(dataset=dataset))
    assert resumed.get_epsilon(DELTA) == spent[-1]


def test_a_data_set_that_cannot_be_remembered_still_trains():
    records = [(torch.ones(3), 1)] * 5
    _, optimizer, loader = SecurePrivacyEngine().make_private(**arguments(dataset=records))
    assert next(iter(loader))[0].shape[1:] == (3,)
    assert optimizer.contribution().vector.shape == (8,)


def test_a_checkpoint_restores_model_and_budget(tmp_path):
    engine = SecurePrivacyEngine()
    model, optimizer, _ = engine.make_private(**arguments(aggregate=lambda share: (share.vector, 2)))
    optimizer.step()
    engine.save_checkpoint(path=tmp_path / "round.pt", module=model, optimizer=optimizer)
    later = SecurePrivacyEngine()
    other, other_optimizer, _ = later.make_private(**arguments(nn.Linear(3, 2)))
    later.load_checkpoint(path=tmp_path / "round.pt", module=other, optimizer=other_optimizer)
    assert later.get_epsilon(DELTA) == engine.get_epsilon(DELTA) > 0
    assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())
    assert isinstance(other.to_standard_module(), nn.Linear)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_reduction": "mean"}, "secret batch"),
        ({"criterion": nn.CrossEntropyLoss()}, "criterion.reduction"),
        ({"poisson_sampling": False}, "poisson_sampling"),
        ({"clipping": "per_layer"}, "clipping"),
        ({"grad_sample_mode": "ghost"}, "grad_sample_mode"),
        ({"grad_sample_mode": "functorch"}, "grad_sample_mode"),
        ({"noise_generator": torch.Generator()}, "noise_generator"),
        ({"batch_first": False}, "batch_first"),
        ({"wrap_model": False}, "wrap_model"),
        ({"noise_multiplier": 1.0}, "unit and mechanism"),
        ({"max_grad_norm": 1.0}, "unit and mechanism"),
        ({"max_colluders": None}, "give mechanism"),
        ({"data_loader": DataLoader(Endless())}, "length"),
        ({"physical_batch_size": 0}, "rows"),
        ({"optimizer": torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)}, "exactly"),
        ({"module": DistributedDataParallel.__new__(DistributedDataParallel)}, "distributed"),
    ],
)
def test_what_would_void_the_guarantee_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SecurePrivacyEngine().make_private(**arguments() | change)


def test_more_refusals():
    engine = SecurePrivacyEngine()
    with pytest.raises(ValueError, match="secure_mode"):
        SecurePrivacyEngine(secure_mode=True)
    module = linear()
    with pytest.raises(ValueError, match="already fixes"):
        engine.make_private(**arguments(module, mechanism=skellam(module, record_unit(rate=0.25))))
    criterion = nn.CrossEntropyLoss(reduction="sum")
    SecurePrivacyEngine().make_private(**arguments(criterion=criterion, poisson_sampling=True))


def test_wrapping_twice_is_refused():
    given = arguments()
    wrapped, optimizer, _ = SecurePrivacyEngine().make_private(**given)
    for change, message in (
        ({"module": wrapped}, "to_standard_module"),
        ({}, "to_standard_module"),
        ({"optimizer": optimizer}, "original_optimizer"),
        ({"module": GradSampleModule(nn.Linear(3, 2))}, "already private"),
    ):
        with pytest.raises(ValueError, match=message):
            SecurePrivacyEngine().make_private(**given | change)


@pytest.mark.parametrize("affine", [True, False])
def test_layers_that_mix_records_are_refused_with_or_without_parameters(affine):
    module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, affine=affine), nn.Linear(8, 2))
    with pytest.raises(UnsupportedModuleError, match="GroupNorm"):
        SecurePrivacyEngine().make_private(**arguments(module))
    if affine:
        SecurePrivacyEngine().make_private(**arguments(SecurePrivacyEngine.get_compatible_module(module)))


@pytest.mark.parametrize("missing", ["torch", "opacus"])
def test_a_missing_extra_is_named(missing):
    code = f"import sys; sys.modules[{missing!r}] = None\nimport dp.record_level"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'secagg[torch]'" in result.stderr
    assert "ImportError" in result.stderr

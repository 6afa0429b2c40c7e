"""Per-record gradients in a rotation: the integers that `IntegerEncoder` makes of each record, and the same steps."""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dp import DistributedSkellam, IntegerEncoder, RecordLevel, UnaccountableError, secure_random
from dp.record_level import SecurePrivacyEngine
from dp.record_level.optimizer import encode_rotated_rows
from dp.rotation import Rotation

UNIT = RecordLevel(clip_norm=1.0, epsilon=1e25, delta=1e-5, rounds=20, sampling_rate=1.0, records=40)
MECHANISM = DistributedSkellam(
    int_bound=2000,
    share_variance=Fraction(1),
    dimension=15,
    clients=2,
    min_survivors=2,
    max_colluders=0,
    sampling_rate=Fraction(1),
)


def coins_of(length: int) -> np.ndarray:
    return np.frombuffer(secure_random()(4 * length), dtype="<u4") * 2.0**-32


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 5), st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_each_row_is_encoded_as_a_unit_of_its_own(rows: int, key: int, size: float) -> None:
    generator = np.random.default_rng(key)
    gradients = [torch.from_numpy(size * generator.normal(size=(rows, part)).astype(np.float32)) for part in (100, 33)]
    encoder, rotation, coins = IntegerEncoder(clip_norm=1.0, int_bound=300), Rotation(133, seed=b"r"), coins_of(133)
    total, rejected = encode_rotated_rows(gradients, coins=coins, encoder=encoder, rotation=rotation)
    words = (coins * 2.0**32).astype("<u4").tobytes()
    alone = [
        encoder.encode(row.astype(np.float64), rand=BytesIO(words).read, rotation=rotation)
        for row in torch.cat(gradients, 1).numpy()
    ]
    assert total.tolist() == np.sum(alone, axis=0, initial=0, dtype=np.int64, keepdims=False).tolist() or rows == 0
    assert rejected == 0
    for integers in alone:
        assert sum(q * q for q in integers.tolist()) <= 300**2
    if rows:
        fewer, _ = encode_rotated_rows([g[1:] for g in gradients], coins=coins, encoder=encoder, rotation=rotation)
        assert (total - fewer).tolist() == alone[0].tolist()  # what removing one record changes


def test_a_row_that_is_not_finite_counts_as_zero() -> None:
    gradients = [torch.tensor([[1.0, 0.0], [np.inf, 1.0], [np.nan, 0.0]] * 1).repeat(1, 20)]
    encoder, rotation, coins = IntegerEncoder(clip_norm=1.0, int_bound=300), Rotation(40, seed=b"r"), coins_of(40)
    total, rejected = encode_rotated_rows(gradients, coins=coins, encoder=encoder, rotation=rotation)
    only, _ = encode_rotated_rows([gradients[0][:1]], coins=coins, encoder=encoder, rotation=rotation)
    assert rejected == 2
    assert total.tolist() == only.tolist()


def prepared(seed: int) -> tuple[nn.Module, object, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = nn.Linear(4, 3)
    generator = np.random.default_rng(0)
    features = torch.from_numpy(generator.normal(size=(20, 4)).astype(np.float32))
    targets = torch.from_numpy(generator.integers(0, 3, size=20))
    module, optimizer, loader = SecurePrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(features, targets)),
        unit=UNIT,
        mechanism=MECHANISM,
        loss_reduction="sum",
    )
    inputs, labels = next(iter(loader))
    torch.autograd.backward(nn.functional.cross_entropy(module(inputs), labels, reduction="sum"))
    return model, optimizer, inputs, labels


def test_the_step_is_that_of_the_unrotated_gradient() -> None:
    """Rotation and its inverse around nearly noiseless integers: the parameters end in the same place."""
    ends = []
    for seed in (b"", b"round 1"):
        model, optimizer, _, _ = prepared(1)
        optimizer.rotate(seed)  # type: ignore[attr-defined]
        share = optimizer.contribution()  # type: ignore[attr-defined]
        assert share.seed == seed
        integers = share.take()
        ends.append((integers, model))
        optimizer.apply(integers, survivors=2)  # type: ignore[attr-defined]
    (plain, first), (turned, second) = ends
    assert np.abs(plain - turned).max() > 100
    np.testing.assert_allclose(np.linalg.norm(plain), np.linalg.norm(turned), rtol=0.05)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=5e-4, rtol=0)


def test_a_batch_under_way_keeps_its_rotation() -> None:
    _, optimizer, _, _ = prepared(1)
    optimizer.clip_and_accumulate()  # type: ignore[attr-defined]
    with pytest.raises(UnaccountableError, match="before a round's first batch"):
        optimizer.rotate(b"late")  # type: ignore[attr-defined]
    optimizer.contribution()  # type: ignore[attr-defined]
    with pytest.raises(UnaccountableError, match="before a round's first batch"):
        optimizer.rotate(b"late")  # type: ignore[attr-defined]
    optimizer.abandon()  # type: ignore[attr-defined]
    optimizer.rotate(b"next")  # type: ignore[attr-defined]

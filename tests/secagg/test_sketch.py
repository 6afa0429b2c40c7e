"""Random coordinates: the same at all parties, linear, unbiased over rounds, and nothing forgotten."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import secagg
from secagg.sketch import NAME, ErrorFeedback, RandomCoordinates

LIKE = {"a": np.zeros((3, 4), np.float32), "b": np.zeros(8, np.float32)}


def random_update(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=array.shape).astype(np.float32) for name, array in LIKE.items()}


@given(keep=st.floats(0.01, 1.0), seed=st.binary(max_size=16))
def test_parties_agree_and_kept_coordinates_come_back(keep: float, seed: bytes) -> None:
    mine, yours = (RandomCoordinates(LIKE, keep=keep, seed=seed) for _ in range(2))
    update = random_update(np.random.default_rng(0))
    sent = mine.compress(update)
    back = yours.restore(sent)
    flat, original = (np.concatenate([arrays[name].ravel() for name in LIKE]) for arrays in (back, update))
    assert sent[NAME].size == np.ceil(keep * 20) == mine.like[NAME].size
    kept = flat != 0
    assert kept.sum() == sent[NAME].size
    np.testing.assert_array_equal(flat[kept], original[kept])


def test_rounds_differ_and_every_coordinate_is_as_likely() -> None:
    counts = np.zeros(20)
    for number in range(2000):
        sketch = RandomCoordinates(LIKE, keep=0.25, seed=number.to_bytes(4, "big"))
        back = sketch.restore({NAME: np.ones(5, np.float32)})
        counts += np.concatenate([back[name].ravel() for name in LIKE])
    assert np.abs(counts / 2000 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 2000)


def test_it_fits_a_masked_sum() -> None:
    rng = np.random.default_rng(1)
    sketch = RandomCoordinates(LIKE, keep=0.5, seed=b"1")
    updates = {client: random_update(rng) for client in range(1, 6)}
    config = secagg.AggregationConfig.cross_silo(
        like=sketch.like, clients=5, max_dropouts=1, max_colluders=1, privacy=secagg.NoPrivacy(clip_norm=50.0)
    )
    assert config.upload_bytes == 40
    result = secagg.simulate({c: sketch.compress(update) for c, update in updates.items()}, config)
    mean = {name: np.mean([update[name] for update in updates.values()], axis=0) for name in LIKE}
    expected = sketch.restore(sketch.compress(mean))
    for name, array in sketch.restore(result.mean).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5)


@given(seed=st.integers(0, 100))
def test_what_was_left_out_arrives_later(seed: int) -> None:
    """Sent plus left over is everything that was ever to be sent."""
    rng, memory = np.random.default_rng(seed), ErrorFeedback()
    total = {name: np.zeros(array.shape) for name, array in LIKE.items()}
    arrived = {name: np.zeros(array.shape) for name, array in LIKE.items()}
    for number in range(5):
        sketch = RandomCoordinates(LIKE, keep=0.3, seed=bytes([number]))
        update = random_update(rng)
        back = sketch.restore(memory.compress(update, sketch))
        for name in LIKE:
            total[name] += update[name]
            arrived[name] += back[name]
    last = RandomCoordinates(LIKE, keep=1.0, seed=b"")
    rest = last.restore(memory.compress({name: np.zeros_like(array) for name, array in LIKE.items()}, last))
    for name in LIKE:
        np.testing.assert_allclose(arrived[name] + rest[name], total[name], atol=1e-4)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan")])
def test_shares_out_of_range(keep: float) -> None:
    with pytest.raises(ValueError, match="keep"):
        RandomCoordinates(LIKE, keep=keep, seed=b"")


def test_another_layout_is_refused() -> None:
    with pytest.raises(secagg.UnsafeUpdateError):
        RandomCoordinates(LIKE, keep=0.5, seed=b"").compress({"a": LIKE["a"]})

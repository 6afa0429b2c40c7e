import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dp.clipping import AdaptiveClipping, clip_by_l2, with_indicator
from dp.errors import UnsafeUpdateError

finite_vectors = arrays(
    np.float64, array_shapes(max_dims=1, max_side=30), elements=st.floats(allow_nan=False, allow_infinity=False)
)
clip_norms = st.floats(1e-200, 1e200)


def squared_norm(vector: np.ndarray) -> Fraction:
    return sum((Fraction(x) ** 2 for x in vector.tolist()), Fraction(0))


@settings(deadline=None)
@given(finite_vectors, clip_norms)
def test_norm_is_bounded_and_short_updates_stay_as_they_are(update, clip_norm):
    before = update.copy()
    clipped = clip_by_l2(update, clip_norm=clip_norm)
    exact, bound = squared_norm(update), Fraction(clip_norm) ** 2
    assert squared_norm(clipped) <= bound * (1 + Fraction(1, 10**12))
    if exact <= bound * (1 - Fraction(1, 10**12)):
        assert np.array_equal(clipped, update)
    if exact > bound * (1 + Fraction(1, 10**12)):
        assert squared_norm(clipped) >= bound * (1 - Fraction(1, 10**12))
    assert np.array_equal(update, before)
    assert not np.shares_memory(clipped, update)


@settings(deadline=None)
@given(finite_vectors, clip_norms)
def test_direction_is_kept(update, clip_norm):
    clipped = clip_by_l2(update, clip_norm=clip_norm)
    peak = int(np.abs(update).argmax())
    for x, y in zip(update.tolist(), clipped.tolist(), strict=True):
        # x / update[peak] = y / clipped[peak], apart from rounding and what underflows.
        difference = Fraction(x) * Fraction(clipped[peak]) - Fraction(y) * Fraction(update[peak])
        scale = abs(Fraction(update[peak])) * (abs(Fraction(clipped[peak])) + Fraction(1e-300))
        assert abs(difference) <= scale * Fraction(1, 10**12)


@pytest.mark.parametrize("magnitude", [1e38, 1e200, 1e300, 1.7e308, 5e-324, 1e-310, 1e-200])
def test_squares_that_overflow_or_vanish(magnitude):
    clip_norm = magnitude / 4 if magnitude > 1 else 5e-324
    clipped = clip_by_l2(np.full(100, magnitude), clip_norm=clip_norm)
    if magnitude > 1:
        np.testing.assert_allclose(clipped, clip_norm / 10, rtol=1e-12)
    else:
        assert (clipped <= 5e-324).all()


def test_three_four_five():
    np.testing.assert_allclose(clip_by_l2(np.array([3.0, -4.0]), clip_norm=1.0), [0.6, -0.8], rtol=1e-15)
    assert clip_by_l2(np.array([3.0, -4.0]), clip_norm=5.0).tolist() == [3.0, -4.0]


@pytest.mark.parametrize("length", [0, 1, 5])
def test_zero_stays_zero(length):
    assert clip_by_l2(np.zeros(length), clip_norm=1.0).tolist() == [0.0] * length


def test_float32_is_widened_before_anything_is_squared():
    update = np.array([3e38, -1e38, 1e-38], dtype=np.float32)
    clipped = clip_by_l2(update, clip_norm=1.0)
    assert clipped.dtype == np.float64
    assert math.isclose(squared_norm(clipped), 1.0, rel_tol=1e-6)
    assert np.array_equal(clip_by_l2(update, clip_norm=1e39), update.astype(np.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 2, 4])
def test_one_value_that_is_not_finite_refuses_the_update(bad, position):
    update = np.ones(5)
    update[position] = bad
    with pytest.raises(UnsafeUpdateError, match="nan or infinity"):
        clip_by_l2(update, clip_norm=1.0)


def test_a_mask_cannot_hide_a_nan():
    with pytest.raises(UnsafeUpdateError, match="nan or infinity"):
        clip_by_l2(np.ma.masked_invalid([1.0, math.nan]), clip_norm=1.0)


@pytest.mark.parametrize(
    "update",
    [
        [1.0, 2.0],
        1.0,
        None,
        np.float64(1.0),
        np.ones((2, 2)),
        np.array(1.0),
        np.ones(2, dtype=np.int64),
        np.ones(2, dtype=np.uint8),
        np.ones(2, dtype=bool),
        np.ones(2, dtype=object),
        np.ones(2, dtype=np.float16),
        np.ones(2, dtype=np.complex128),
    ],
)
def test_anything_but_a_float_vector_is_refused(update):
    with pytest.raises(UnsafeUpdateError):
        clip_by_l2(update, clip_norm=1.0)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_clip_norm_must_be_positive_and_finite(clip_norm):
    with pytest.raises(ValueError, match="clip_norm"):
        clip_by_l2(np.ones(2), clip_norm=clip_norm)


# A norm that follows the updates


@given(finite_vectors, st.floats(1e-100, 1e100), st.floats(1e-100, 1e100))
def test_the_indicator_says_whether_the_clip_did_anything(update, clip_norm, indicator):
    vector = with_indicator(update, clip_norm=clip_norm, indicator=indicator)
    assert np.array_equal(vector[:-1], clip_by_l2(update, clip_norm=clip_norm))
    assert vector[-1] == (indicator if np.array_equal(vector[:-1], update) else -indicator)
    longer = Fraction(clip_norm) ** 2 * (1 + Fraction(1, 10**9))
    if squared_norm(update) > longer:
        assert vector[-1] == -indicator
    assert squared_norm(vector) <= longer + Fraction(indicator) ** 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_indicator_hides_nothing_that_is_not_finite(bad):
    with pytest.raises(UnsafeUpdateError, match="nan or infinity"):
        with_indicator(np.array([1.0, bad]), clip_norm=1.0, indicator=0.1)


@pytest.mark.parametrize("indicator", [-0.1, 0.0, math.inf, math.nan])
def test_an_indicator_out_of_range_is_refused(indicator):
    with pytest.raises(ValueError, match="indicator"):
        with_indicator(np.ones(2), clip_norm=1.0, indicator=indicator)


@given(st.floats(1e-3, 1e3), st.floats(-5, 5), st.floats(0.01, 0.99), st.floats(0.01, 1.0))
def test_too_many_clipped_widen_the_norm_and_too_few_narrow_it(clip_norm, unclipped, quantile, rate):
    rule = AdaptiveClipping(initial=1.0, target_quantile=quantile, learning_rate=rate)
    after = rule.following(clip_norm, unclipped=unclipped)
    assert after == pytest.approx(clip_norm * math.exp(-rate * (np.clip(unclipped, 0, 1) - quantile)), rel=1e-12)
    if abs(unclipped - quantile) > 1e-9:
        assert (after > clip_norm) == (unclipped < quantile)


@given(st.lists(st.floats(-1, 2), max_size=40), st.floats(0.01, 0.99), st.floats(0.01, 1.0))
def test_no_course_leaves_the_bounds_and_the_extreme_one_meets_them(course, quantile, rate):
    rule = AdaptiveClipping(initial=3.0, target_quantile=quantile, learning_rate=rate)
    low, high = rule.bounds(len(course))
    norm = 3.0
    for unclipped in course:
        norm = rule.following(norm, unclipped=unclipped)
    assert low <= norm <= high
    extreme = 3.0
    for _ in course:
        extreme = rule.following(extreme, unclipped=0.0 if quantile >= 0.5 else 1.0)
    assert max(extreme / 3.0, 3.0 / extreme) == pytest.approx(high / 3.0, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("initial", value) for value in (0.0, -1.0, math.nan, math.inf)),
        *(("target_quantile", value) for value in (0.0, 1.0, -0.5, math.nan)),
        *(("learning_rate", value) for value in (0.0, 1.5, -1.0, math.nan)),
    ],
)
def test_a_rule_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        AdaptiveClipping(**{"initial": 1.0, name: value})

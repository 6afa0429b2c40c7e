import math
import re
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dp.encoding import MAX_INT_BOUND, IntegerEncoder, coarsest_int_bound, from_ring, lower_norm, required_bits, to_ring
from dp.errors import CapacityError, UnsafeUpdateError
from dp.samplers import RandomBytes

ALL_UP = b"\xff".__mul__  # every coin rounds up
ALL_DOWN = b"\x00".__mul__


def fixed_stream(key: int = 0) -> RandomBytes:
    """The same bytes in every run, so that statistical tests are deterministic."""
    keystream = Cipher(AES256(key.to_bytes(32, "big")), CTR(bytes(16))).encryptor()
    return lambda size: keystream.update(bytes(size))


def squared_norm(integers: np.ndarray) -> int:
    """In Python integers."""
    return sum(q * q for q in integers.tolist())


def smallest_bound(length: int) -> int:
    return math.isqrt(64 * length - 1) + 1


encoders = st.builds(
    IntegerEncoder,
    clip_norm=st.one_of(st.floats(1e-290, 1e300), st.just(1.0)),
    int_bound=st.one_of(st.integers(64, 5000), st.just(MAX_INT_BOUND)),
)
coins = st.sampled_from([ALL_UP, ALL_DOWN, fixed_stream()])
finite = st.floats(allow_nan=False, allow_infinity=False)


# The bound


@settings(deadline=None, max_examples=300)
@given(encoders, arrays(np.float64, array_shapes(max_dims=1, max_side=64), elements=st.floats()), coins)
@example(IntegerEncoder(clip_norm=1.0, int_bound=64), np.array([-0.0, 5e-324, 1e308, -1e308]), ALL_UP)
def test_any_floats_end_within_the_bound_or_in_a_typed_error(encoder, update, rand):
    if not np.isfinite(update).all():
        with pytest.raises(UnsafeUpdateError):
            encoder.encode(update, rand=rand)
        return
    encoded = encoder.encode(update, rand=rand)
    assert encoded.dtype == np.int64
    assert encoded.shape == update.shape
    assert squared_norm(encoded) <= encoder.int_bound**2


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(0, 3), st.randoms(use_true_random=False), coins)
def test_the_bound_holds_where_the_clip_bites_and_dimension_is_largest(length, extra, source, rand):
    bound = smallest_bound(length) + extra
    update = np.array([source.gauss(0, 1) for _ in range(length)])
    encoded = IntegerEncoder(clip_norm=1e-3, int_bound=bound).encode(update, rand=rand)
    assert squared_norm(encoded) <= bound**2


def test_an_overshoot_that_only_forged_coins_reach_is_brought_back():
    bound = 256
    steps = np.array([10.05] * 500 + [5.05] * 500)  # in integer steps: just short enough not to be clipped
    assert squared_norm(np.ceil(steps).astype(np.int64)) > bound**2
    encoded = IntegerEncoder(clip_norm=1.0, int_bound=bound).encode(steps / bound, rand=ALL_UP)
    assert encoded.tolist() == [10] * 500 + [5] * 500


@pytest.mark.parametrize("length", [1, 10, 1000, 100_000])
def test_honest_coins_do_not_overshoot(length):
    bound = smallest_bound(length)
    direction = np.random.default_rng(length).normal(size=length)
    direction /= np.linalg.norm(direction)
    steps = (bound - length / (8 * bound) - 4) * direction  # the documented clip, so these must not be shortened
    for key in range(20):
        encoded = IntegerEncoder(clip_norm=1.0, int_bound=bound).encode(steps / bound, rand=fixed_stream(key))
        assert (np.abs(encoded - steps) < 1).all()


@pytest.mark.parametrize("bound", [1, 1000, MAX_INT_BOUND - 1, MAX_INT_BOUND])
def test_the_comparison_is_exact_to_the_last_integer(bound):
    on_the_sphere = np.array([float(bound), 0.0])
    assert lower_norm(on_the_sphere.copy(), bound=bound).tolist() == on_the_sphere.tolist()
    one_too_much = np.array([float(bound), -1.0])
    lowered = lower_norm(one_too_much.copy(), bound=bound)
    assert squared_norm(lowered.astype(np.int64)) <= bound**2
    assert (np.abs(lowered) < np.abs(one_too_much)).all()


@settings(deadline=None)
@given(
    arrays(np.float64, array_shapes(max_dims=1, max_side=40), elements=st.integers(-(2**30), 2**30).map(float)),
    st.integers(1, MAX_INT_BOUND),
)
def test_lowering_ends_within_the_bound_and_only_shortens(integers, bound):
    lowered = lower_norm(integers.copy(), bound=bound)
    assert squared_norm(lowered.astype(np.int64)) <= bound**2
    assert (np.abs(lowered) <= np.abs(integers)).all()
    assert (lowered * integers >= 0).all()


@pytest.mark.parametrize("length", [1, 2, 16, 17, 1000, 65_537])
def test_the_smallest_bound_works_and_the_next_smaller_one_is_refused_by_name(length):
    needed = coarsest_int_bound(length)
    update = np.linspace(-1.0, 1.0, length)
    assert (
        squared_norm(IntegerEncoder(clip_norm=1.0, int_bound=needed).encode(update, rand=fixed_stream())) <= needed**2
    )
    small = IntegerEncoder(clip_norm=1.0, int_bound=needed - 1)
    with pytest.raises(CapacityError, match=rf"at least {needed} is needed"):
        small.encode(update, rand=fixed_stream())
    with pytest.raises(CapacityError, match=rf"at least {needed} is needed"):
        small.encode_records(np.zeros((0, length)), rand=fixed_stream())


@pytest.mark.parametrize("length", [1, 2, 16, 100, 1000, 65_537, 1_000_003])
def test_the_coarsest_bound_keeps_nine_tenths_of_the_clip(length):
    coarsest = coarsest_int_bound(length)
    assert coarsest <= smallest_bound(length)
    kept = IntegerEncoder(clip_norm=3.0, int_bound=coarsest).first_clip(length) / 3.0
    less = IntegerEncoder(clip_norm=3.0, int_bound=coarsest - 1).first_clip(length) / 3.0
    assert kept >= 0.9 or coarsest == smallest_bound(length)
    assert less < 0.9
    assert coarsest < 1.25 * math.sqrt(length) + 50


@pytest.mark.parametrize("length", [1000, 100_000])
def test_coarse_steps_narrow_the_clip_and_bias_nothing_inside(length):
    """The mean over many codings of an update at the narrowed clip is that update."""
    bound, rounds = coarsest_int_bound(length), 50
    encoder = IntegerEncoder(clip_norm=1.0, int_bound=bound)
    update = np.random.default_rng(length).normal(size=length)
    update *= 0.999 * encoder.first_clip(length) / np.linalg.norm(update)
    total = sum(encoder.encode(update, rand=fixed_stream(key)) for key in range(rounds))
    # Rounding errors are independent: sqrt(d / 4) per coding, against a shift along the update itself.
    shift = float(np.dot(total / rounds * (1.0 / bound) - update, update)) / np.dot(update, update)
    assert abs(shift) < 5 * 0.5 / bound / np.linalg.norm(update) / math.sqrt(rounds)


def test_one_coordinate_uses_most_of_a_small_bound():
    assert IntegerEncoder(clip_norm=1.0, int_bound=16).encode(np.array([-9.0]), rand=fixed_stream()).tolist() == [-15]


# Rounding


@settings(deadline=None)
@given(st.floats(-0.9, 0.9), st.integers(16, 10_000))
def test_rounding_is_unbiased_over_a_grid_of_coins(value, bound):
    encoder = IntegerEncoder(clip_norm=1.0, int_bound=bound)
    grid = 64
    rounded = [
        encoder.encode(np.array([value]), rand=lambda size, k=k: (k << 26).to_bytes(4, "little")).item()
        for k in range(grid)
    ]
    assert {math.floor(value * bound), math.ceil(value * bound)} >= set(rounded)
    assert abs(sum(rounded) / grid - value * bound) <= 1 / grid


def test_rounding_is_unbiased_over_a_long_vector():
    length, bound = 100_000, 8192
    steps = np.linspace(-10.0, 10.0, length) + 0.3
    errors = IntegerEncoder(clip_norm=1.0, int_bound=bound).encode(steps / bound, rand=fixed_stream()) - steps
    assert np.abs(errors).max() < 1
    for part in np.split(errors, 10):
        assert abs(part.sum()) < 4 * 0.5 * len(part) ** 0.5
    assert abs(np.corrcoef(errors[:-1], errors[1:])[0, 1]) < 0.02  # coordinates do not share coins


@settings(deadline=None)
@given(
    arrays(np.float64, st.integers(1, 64), elements=st.floats(-0.1, 0.1)),
    st.floats(1e-30, 1e30),
    st.integers(100, 10**6),
)
def test_round_trip_stays_within_one_step_per_coordinate(update, clip_norm, bound):
    assume(np.linalg.norm(update) < 0.8)
    encoder = IntegerEncoder(clip_norm=clip_norm, int_bound=bound)
    decoded = encoder.decode(encoder.encode(update * clip_norm, rand=fixed_stream()), denominator=1.0)
    assert (np.abs(decoded - update * clip_norm) <= clip_norm / bound * (1 + 1e-6)).all()


def test_long_updates_keep_their_direction():
    update = np.random.default_rng(1).normal(size=5000) * 1e6
    encoder = IntegerEncoder(clip_norm=2.0, int_bound=100_000)
    decoded = encoder.decode(encoder.encode(update, rand=fixed_stream()), denominator=1.0)
    np.testing.assert_allclose(decoded, 2 * update / np.linalg.norm(update), atol=2 * 1.001 / 100_000 + 2e-4 * 0.06)
    assert 2.0 * (1 - 2e-4) < np.linalg.norm(decoded) <= 2.0


def test_decode_divides_by_the_denominator():
    total = np.array([0, -300, 2**40], dtype=np.int64)
    np.testing.assert_allclose(
        IntegerEncoder(clip_norm=2.0, int_bound=100).decode(total, denominator=3.0),
        [0.0, -2.0, 2**41 / 300],
        rtol=1e-15,
    )


def test_encode_reads_four_bytes_a_coordinate_whatever_the_data():
    for update in (np.zeros(70_000), np.full(70_000, 1e300)):
        sizes: list[int] = []
        IntegerEncoder(clip_norm=1.0, int_bound=5000).encode(
            update, rand=lambda size, sizes=sizes: sizes.append(size) or bytes(size)
        )
        assert sum(sizes) == 4 * 70_000


def test_float32_encodes_as_the_same_numbers_in_float64():
    update = np.random.default_rng(0).normal(size=300).astype(np.float32)
    encoder = IntegerEncoder(clip_norm=1.0, int_bound=4000)
    encoded = encoder.encode(update, rand=fixed_stream())
    assert np.array_equal(encoded, encoder.encode(update.astype(np.float64), rand=fixed_stream()))


def test_coins_that_run_dry_are_an_error():
    with pytest.raises(ValueError, match="buffer"):
        IntegerEncoder(clip_norm=1.0, int_bound=100).encode(np.ones(50), rand=lambda size: bytes(4))


# Records


def scripted(*streams: bytes) -> RandomBytes:
    rest = bytearray(b"".join(streams))

    def read(size: int) -> bytes:
        taken = bytes(rest[:size])
        del rest[:size]
        return taken

    return read


@settings(deadline=None)
@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=finite), st.data())
def test_removing_a_record_moves_the_sum_by_that_record_alone(records, data):
    count, length = records.shape
    encoder = IntegerEncoder(clip_norm=1.0, int_bound=smallest_bound(length))
    own_coins = [fixed_stream(row)(4 * length) for row in range(count)]
    gone = data.draw(st.integers(0, count - 1))
    whole = encoder.encode_records(records, rand=scripted(*own_coins))
    without = encoder.encode_records(
        np.delete(records, gone, axis=0), rand=scripted(*own_coins[:gone], *own_coins[gone + 1 :])
    )
    assert np.array_equal(whole - without, encoder.encode(records[gone], rand=scripted(own_coins[gone])))
    assert squared_norm(whole - without) <= encoder.int_bound**2


def test_rows_of_several_chunks_read_their_own_coins():
    records = np.random.default_rng(3).normal(size=(3, 100_000))
    encoder = IntegerEncoder(clip_norm=1.0, int_bound=smallest_bound(100_000))
    stream = fixed_stream()
    assert np.array_equal(
        encoder.encode_records(records, rand=fixed_stream()), sum(encoder.encode(row, rand=stream) for row in records)
    )


def test_an_empty_batch_is_a_sum_of_zeros_and_reads_no_coins():
    total = IntegerEncoder(clip_norm=1.0, int_bound=100).encode_records(
        np.zeros((0, 7), dtype=np.float32), rand=scripted()
    )
    assert total.tolist() == [0] * 7
    assert total.dtype == np.int64


def test_a_batch_needs_no_integer_copy_of_itself():
    records = np.random.default_rng(0).normal(size=(32, 100_000)).astype(np.float32)
    encoder = IntegerEncoder(clip_norm=1.0, int_bound=8192)
    tracemalloc.start()
    encoder.encode_records(records, rand=fixed_stream())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 8 * records.shape[1]  # eight rows of float64, against 32 for a copy


@pytest.mark.parametrize(
    "records",
    [
        np.ones(3),
        np.ones((2, 3, 1)),
        np.ones((2, 3), dtype=np.int64),
        np.ones((0, 3), dtype=np.int32),
        np.ones((2, 3), dtype=bool),
        [[1.0, 2.0]],
    ],
)
def test_unsafe_records_are_refused(records):
    with pytest.raises(UnsafeUpdateError):
        IntegerEncoder(clip_norm=1.0, int_bound=100).encode_records(records, rand=fixed_stream())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_record_that_is_not_finite_counts_as_zero_and_keeps_its_coins(bad):
    """A refusal would tell others about one record."""
    encoder = IntegerEncoder(clip_norm=1.0, int_bound=100)
    spoilt = np.array([[0.3, 0.1], [bad, 0.2], [-0.2, 0.4]])
    zeroed = np.where(np.isfinite(spoilt).all(axis=1, keepdims=True), spoilt, 0.0)
    first = encoder.encode_records(spoilt, rand=fixed_stream())
    assert first.tolist() == encoder.encode_records(zeroed, rand=fixed_stream()).tolist()


def test_more_records_than_float64_can_add_exactly_are_refused():
    endless = np.lib.stride_tricks.as_strided(np.zeros(1), shape=(2**26 + 1, 1), strides=(0, 8))
    with pytest.raises(CapacityError, match=str(2**26)):
        IntegerEncoder(clip_norm=1.0, int_bound=100).encode_records(endless, rand=fixed_stream())


# Refusals


@pytest.mark.parametrize(
    "update",
    [[1.0], np.ones((1, 1)), np.ones(1, dtype=np.int64), np.ones(1, dtype=bool), np.ones(1, dtype=object), None],
)
def test_an_unsafe_update_is_refused(update):
    with pytest.raises(UnsafeUpdateError):
        IntegerEncoder(clip_norm=1.0, int_bound=100).encode(update, rand=fixed_stream())


@pytest.mark.parametrize("int_bound", [0, -5, MAX_INT_BOUND + 1])
def test_int_bound_out_of_range(int_bound):
    with pytest.raises(ValueError, match=re.escape(str(MAX_INT_BOUND))):
        IntegerEncoder(clip_norm=1.0, int_bound=int_bound)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf, 5e-324])
def test_clip_norm_out_of_range(clip_norm):
    with pytest.raises(ValueError, match="clip_norm"):
        IntegerEncoder(clip_norm=clip_norm, int_bound=100)


@pytest.mark.parametrize("denominator", [0.0, -1.0, math.nan, math.inf])
def test_denominator_out_of_range(denominator):
    with pytest.raises(ValueError, match="denominator"):
        IntegerEncoder(clip_norm=1.0, int_bound=100).decode(np.zeros(1, dtype=np.int64), denominator=denominator)


# The ring


def centred(value: int, bits: int) -> int:
    return (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


@settings(deadline=None)
@given(st.integers(2, 32), st.data())
def test_the_ring_adds_as_integers_do(bits, data):
    vectors = data.draw(
        arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=10), elements=st.integers(-(2**55), 2**55))
    )
    words = [to_ring(vector, modulus_bits=bits) for vector in vectors]
    assert all(word.dtype == np.uint32 and int(word.max()) < 2**bits for word in words)
    masked = sum(word.astype(np.uint64) for word in words) % 2**bits
    lifted = from_ring(masked.astype(np.uint32), modulus_bits=bits)
    assert lifted.dtype == np.int64
    assert lifted.tolist() == [centred(sum(column), bits) for column in zip(*vectors.tolist(), strict=True)]


@pytest.mark.parametrize("bits", range(2, 33))
def test_the_ends_of_the_centred_range_survive(bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    integers = np.array([low, -1, 0, 1, high], dtype=np.int64)
    assert from_ring(to_ring(integers, modulus_bits=bits), modulus_bits=bits).tolist() == integers.tolist()
    wrapped = np.array([low - 1, high + 1], dtype=np.int64)
    assert from_ring(to_ring(wrapped, modulus_bits=bits), modulus_bits=bits).tolist() == [high, low]


@pytest.mark.parametrize("bits", [-1, 0, 1, 33, 64])
def test_modulus_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="modulus_bits"):
        to_ring(np.zeros(1, dtype=np.int64), modulus_bits=bits)
    with pytest.raises(ValueError, match="modulus_bits"):
        from_ring(np.zeros(1, dtype=np.uint32), modulus_bits=bits)


def test_a_word_outside_the_ring_is_refused():
    with pytest.raises(ValueError, match="outside the ring of 20 bits"):
        from_ring(np.array([0, 2**20], dtype=np.uint32), modulus_bits=20)


# Head-room


@settings(deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 2**31), st.floats(0, 1e9))
def test_required_bits_are_enough_and_one_less_is_not(units, int_bound, stddev):
    bits = required_bits(units=units, int_bound=int_bound, stddev=stddev)
    reach = units * int_bound + Fraction(15, 2) * Fraction(stddev)
    assert 2 ** (bits - 1) > reach >= 2 ** (bits - 2)


@pytest.mark.parametrize(
    ("units", "int_bound", "bits"), [(1, 1, 2), (1, 2, 3), (1, 127, 8), (1, 128, 9), (8, 16, 9), (1000, 2**26, 37)]
)
def test_required_bits_by_hand(units, int_bound, bits):
    assert required_bits(units=units, int_bound=int_bound, stddev=0) == bits


@settings(deadline=None)
@given(st.integers(1, 1000), st.integers(64, 20_000), st.floats(0, 1e5), st.sampled_from([-1, 1]), coins)
def test_units_that_all_push_one_coordinate_never_wrap(units, int_bound, stddev, sign, rand):
    bits = required_bits(units=units, int_bound=int_bound, stddev=stddev)
    worst = IntegerEncoder(clip_norm=1.0, int_bound=int_bound).encode(np.array([sign * 1e9, 0.0]), rand=rand)
    for unit in (worst, np.array([sign * int_bound, 0])):
        total = unit * units + sign * math.floor(7.5 * stddev)
        assert (
            from_ring(to_ring(total, modulus_bits=min(bits, 32)), modulus_bits=min(bits, 32)).tolist() == total.tolist()
            or bits > 32
        )


@pytest.mark.parametrize(
    ("units", "int_bound", "stddev"), [(0, 1, 0.0), (1, 0, 0.0), (1, 1, -1.0), (1, 1, math.nan), (1, 1, math.inf)]
)
def test_required_bits_refuses_what_has_no_answer(units, int_bound, stddev):
    with pytest.raises(ValueError, match="must be"):
        required_bits(units=units, int_bound=int_bound, stddev=stddev)

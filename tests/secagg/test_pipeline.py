"""prepare and finish: the data path from floats to ring words and back, for every lane width and privacy unit."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp import secure_random, to_ring
from dp.rotation import Rotation
from dp.samplers import RandomBytes
from protocols import ClientId
from secagg import AggregationConfig, ClientLevel, NoPrivacy, RecordLevel, UnsafeUpdateError
from secagg.pipeline import finish, prepare

CLIP = 2.0
BITS = (8, 10, 12, 16, 21, 32)


@cache
def rand() -> RandomBytes:
    return secure_random()


@cache
def config(
    unit: str, *, length: int = 3, clients: int = 5, bits: int = 32, epsilon: float = 4.0, rate: float = 0.5
) -> AggregationConfig:
    units: dict[str, NoPrivacy | ClientLevel | RecordLevel] = {
        "none": NoPrivacy(clip_norm=CLIP),
        "client": ClientLevel(clip_norm=CLIP, epsilon=epsilon, delta=1e-6, rounds=1),
        "record": RecordLevel(clip_norm=CLIP, epsilon=epsilon, delta=1e-6, rounds=1, sampling_rate=rate, records=200),
    }
    return AggregationConfig.cross_silo(
        like={"w": np.zeros(length)},
        clients=clients,
        max_dropouts=0,
        max_colluders=0,
        privacy=units[unit],
        modulus_bits=bits,
    )


@st.composite
def vectors(draw: st.DrawFn, length: int, norm: float) -> np.ndarray:
    """A vector of L2 norm at most `norm`."""
    direction = np.array(draw(st.lists(st.floats(-1, 1), min_size=length, max_size=length)))
    size = np.linalg.norm(direction)
    return direction * (draw(st.floats(0, norm)) / size) if size > 1e-9 else direction


class TestNoPrivacy:
    @given(bits=st.sampled_from(BITS), clients=st.integers(2, 6), data=st.data())
    def test_the_mean_comes_back_for_every_lane_width(self, bits: int, clients: int, data: st.DataObject) -> None:
        subject = config("none", clients=clients, bits=bits)
        updates = [data.draw(vectors(3, CLIP / 2)) for _ in range(clients)]
        words = [prepare({"w": update}, subject, rand=rand()) for update in updates]
        assert all(w.dtype == np.uint32 and w.max() < 2**bits for w in words)
        ring_sum = np.sum(words, axis=0, dtype=np.uint64)
        if subject.offset:
            assert ring_sum.max() < 2**bits  # packed lanes never carry into each other
        released = finish((ring_sum % 2**bits).astype(np.uint32), subject, survivors=range(clients))
        total, mean = released.total, released.mean
        step = CLIP / subject.encoder.int_bound
        np.testing.assert_allclose(mean["w"], np.mean(updates, axis=0), atol=step * (1 + 1e-6))
        np.testing.assert_allclose(total * step / clients, mean["w"], atol=1e-12)

    @pytest.mark.parametrize("bits", BITS)
    @given(update=vectors(3, 1e6))
    def test_no_update_counts_for_more_than_the_clip(self, bits: int, update: np.ndarray) -> None:
        subject = config("none", bits=bits)
        released = finish(prepare({"w": update}, subject, rand=rand()), subject, survivors=[1])
        total, mean = released.total, released.mean
        assert int(np.sum(total**2)) <= subject.encoder.int_bound**2
        assert np.linalg.norm(mean["w"]) <= CLIP * (1 + 1e-9)

    @pytest.mark.parametrize("bits", BITS)
    def test_largest_sums_do_not_wrap(self, bits: int) -> None:
        """All clients put their whole clip on one coordinate, in one direction."""
        subject = config("none", length=1, bits=bits)
        for sign in (-1.0, 1.0):
            words = [prepare({"w": np.array([sign * 1e9])}, subject, rand=rand()) for _ in range(5)]
            ring_sum = (np.sum(words, axis=0, dtype=np.uint64) % 2**bits).astype(np.uint32)
            mean = finish(ring_sum, subject, survivors=range(5)).mean
            assert 0.5 * CLIP < sign * mean["w"][0] <= CLIP * (1 + 1e-9)

    def test_dtypes_come_back(self) -> None:
        like: dict[str, np.ndarray] = {"a": np.ones((2, 2), np.float32), "b": np.ones((), np.float64)}
        subject = AggregationConfig.cross_silo(
            like=like, clients=2, max_dropouts=0, max_colluders=0, privacy=NoPrivacy(clip_norm=10.0)
        )
        mean = finish(prepare(like, subject, rand=rand()), subject, survivors=[1]).mean
        for name, array in like.items():
            assert (mean[name].dtype, mean[name].shape) == (array.dtype, array.shape)
            np.testing.assert_allclose(mean[name], array, atol=1e-5)


class TestNoise:
    LENGTH = 20_000

    def noise(self, unit: str, update: dict[str, np.ndarray]) -> np.ndarray:
        subject = config(unit, length=self.LENGTH)
        total = finish(prepare(update, subject, rand=rand()), subject, survivors=range(5)).total
        return total.astype(np.float64)

    @pytest.mark.parametrize(
        ("unit", "shape"), [("client", (LENGTH,)), ("record", (0, LENGTH)), ("record", (3, LENGTH))]
    )
    def test_a_share_of_full_variance_is_always_in_it(self, unit: str, shape: tuple[int, ...]) -> None:
        """A client with an empty batch must not be told apart, and the others count on its noise."""
        mechanism = config(unit, length=self.LENGTH).mechanism
        assert mechanism is not None
        sent = self.noise(unit, {"w": np.zeros(shape)})
        # The mean square of 20,000 draws has a relative standard deviation of sqrt(2 / 20000) = 1 %.
        assert np.mean(sent**2) == pytest.approx(float(mechanism.share_variance), rel=0.06)
        assert abs(np.mean(sent)) < 6 * math.sqrt(mechanism.share_variance / self.LENGTH)

    @pytest.mark.parametrize("unit", ["client", "record"])
    def test_is_fresh_at_every_call(self, unit: str) -> None:
        update = {"w": np.zeros(self.LENGTH if unit == "client" else (1, self.LENGTH))}
        first, second = self.noise(unit, update), self.noise(unit, update)
        correlation = np.corrcoef(first, second)[0, 1]
        assert abs(correlation) < 6 / math.sqrt(self.LENGTH)

    def test_records_are_clipped_one_by_one_and_added(self) -> None:
        subject = config("record", length=1, epsilon=200.0, rate=1.0)
        assert subject.mechanism is not None
        deviation = math.sqrt(subject.mechanism.share_variance)
        records = np.array([[CLIP / 4]] * 40 + [[1e6]] * 2 + [[-CLIP / 4]] * 8)
        released = finish(prepare({"w": records}, subject, rand=rand()), subject, survivors=range(5))
        total, mean = released.total, released.mean
        expected = (40 / 4 + 2 - 8 / 4) * subject.encoder.int_bound
        assert abs(total[0] - expected) < 8 * deviation + 8  # two clipped records lose up to 4 steps each
        # The public divisor: rate x records, not the 50 that are in this batch.
        assert mean["w"][0] == pytest.approx(total[0] * CLIP / subject.encoder.int_bound / 200)

    def test_records_are_drawn_in_secret_each_time_anew(self) -> None:
        """The accounted amplification is that of independent coins: neither a fixed batch size nor a fixed batch."""
        subject = config("record", length=1, epsilon=200.0)
        assert subject.mechanism is not None
        noise = math.sqrt(subject.mechanism.share_variance) / subject.encoder.int_bound
        assert noise < 0.5  # of one record: batch sizes can be read off the sum
        records = {"w": np.full((200, 1), 0.9 * CLIP)}
        sizes = []
        for _ in range(100):
            total = finish(prepare(records, subject, rand=rand()), subject, survivors=range(5)).total
            sizes.append(total[0] / subject.encoder.int_bound / 0.9)
        # Binomial(200, 1/2): variance 50; the mean of 100 has a standard deviation of 0.7, the variance of 14 %.
        assert abs(np.mean(sizes) - 100) < 6 * 0.75
        assert 0.2 * 50 < np.var(sizes) < 1.8 * (50 + (noise / 0.9) ** 2)

    def test_the_expected_error_is_the_observed_one(self) -> None:
        subject = config("client", length=self.LENGTH)
        survivors = subject.min_survivors
        words = [prepare({"w": np.zeros(self.LENGTH)}, subject, rand=rand()) for _ in range(survivors)]
        mean = finish(np.sum(words, axis=0, dtype=np.uint32), subject, survivors=range(survivors)).mean
        assert np.linalg.norm(mean["w"]) / CLIP == pytest.approx(subject.relative_error, rel=0.05)


def spike(length: int, size: float, place: int = 0) -> dict[str, np.ndarray]:
    update = np.zeros(length)
    update[place] = size
    return {"w": update}


class TestRotation:
    """Rings that could not hold one heavy coordinate hold it after the rotation."""

    SEED = b"round 1"

    @pytest.mark.parametrize(("bits", "clients"), [(8, 6), (10, 6), (12, 6), (16, 30)])
    def test_without_noise_the_mean_comes_back(self, bits: int, clients: int) -> None:
        length = 40_000
        subject = config("none", length=length, clients=clients, bits=bits)
        assert subject.rotation
        updates = [spike(length, CLIP / 2, place=7) for _ in range(clients)]
        words = [prepare(update, subject, rand=rand(), seed=self.SEED) for update in updates]
        ring_sum = np.sum(words, axis=0, dtype=np.uint64)
        if subject.offset:
            assert max(word.max() for word in words) <= (2**bits - 1) // clients
            assert ring_sum.max() < 2**bits
        words = (ring_sum % 2**bits).astype(np.uint32)
        released = finish(words, subject, survivors=range(clients), seed=self.SEED)
        assert released.near_limit == 0
        step = CLIP / subject.encoder.int_bound
        error = released.mean["w"] - updates[0]["w"]
        # Rounding: variance of at most a quarter step per unit and coordinate.
        assert np.linalg.norm(error) < 1.1 * step * math.sqrt(length / 4 / clients)
        assert np.abs(error).max() < 6 * step * 0.5 / math.sqrt(clients)

    def test_with_noise_the_error_is_the_expected_one(self) -> None:
        length, clients = 20_000, 20
        subject = config("client", length=length, clients=clients, bits=16)
        assert subject.rotation
        assert subject.mechanism is not None
        updates = [spike(length, 0.9 * CLIP, place=length - 1) for _ in range(clients)]
        words = [prepare(update, subject, rand=rand(), seed=self.SEED) for update in updates]
        ring_sum = (np.sum(words, axis=0, dtype=np.uint64) % 2**16).astype(np.uint32)
        released = finish(ring_sum, subject, survivors=range(clients), seed=self.SEED)
        assert released.near_limit < 25  # about 4 of 20,000 lie beyond three quarters of the range
        mean = released.mean
        error = mean["w"] - updates[0]["w"]
        assert np.linalg.norm(error) / CLIP == pytest.approx(subject.relative_error, rel=0.05)
        assert mean["w"][-1] == pytest.approx(0.9 * CLIP, abs=6 * CLIP * subject.relative_error / math.sqrt(length))

    def test_every_record_is_rotated_and_checked_on_its_own(self) -> None:
        subject = config("record", length=300, bits=16, epsilon=100.0, rate=1.0)
        assert subject.rotation
        records = np.stack([spike(300, 0.5 * CLIP)["w"]] * 150 + [spike(300, 1e6)["w"]] * 10 + [np.full(300, np.nan)])
        words = prepare({"w": records}, subject, rand=rand(), seed=self.SEED)
        mean = finish(words, subject, survivors=range(5), seed=self.SEED).mean
        kept = subject.encoder.first_clip(300)
        assert subject.relative_error is not None
        noise = CLIP * subject.relative_error / math.sqrt(300)
        assert abs(mean["w"][0] - (150 * 0.5 * CLIP + 10 * kept) / 200) < 8 * noise
        assert np.abs(mean["w"][1:]).max() < 8 * noise

    def test_another_seed_does_not_turn_back(self) -> None:
        subject = config("none", length=40_000, clients=6, bits=12)
        update = np.random.default_rng(2).normal(size=40_000) * CLIP / 400
        words = prepare({"w": update}, subject, rand=rand(), seed=self.SEED)
        right, wrong = (
            np.corrcoef(finish(words, subject, survivors=[1], seed=seed).mean["w"], update)[0, 1]
            for seed in (self.SEED, b"round 2")
        )
        assert right > 0.99
        assert abs(wrong) < 0.05

    def test_a_seed_is_needed(self) -> None:
        subject = config("none", length=40_000, clients=6, bits=12)
        with pytest.raises(ValueError, match="public seed is needed"):
            prepare(spike(40_000, 1.0), subject, rand=rand())
        with pytest.raises(ValueError, match="public seed is needed"):
            finish(np.zeros(40_000, np.uint32), subject, survivors=[1])

    def test_what_passes_a_packed_lane_is_cut_off_and_never_carries(self) -> None:
        """Whoever knows the signs first can aim at one coordinate; the other lanes of its word stay whole."""
        subject = config("none", length=40_000, clients=6, bits=12)
        rotation = Rotation(40_000, seed=self.SEED)
        aimed = {"w": rotation.invert(spike(40_000, 0.9 * CLIP, place=5)["w"])}
        words = prepare(aimed, subject, rand=rand(), seed=self.SEED)
        assert words[5] == 2 * subject.offset
        assert 2 * subject.offset <= (2**12 - 1) // 6

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_an_update_that_is_not_finite_is_refused(self, value: float) -> None:
        subject = config("none", length=40_000, clients=6, bits=12)
        with pytest.raises(UnsafeUpdateError, match="nan or inf"):
            prepare(spike(40_000, value), subject, rand=rand(), seed=self.SEED)

    def test_noised_integers_must_be_in_the_rounds_rotation(self) -> None:
        subject = config("record", length=300, bits=16, epsilon=100.0, rate=1.0)
        assert subject.mechanism is not None
        for seed in (b"", b"round 0"):
            noised = subject.mechanism.privatize(np.zeros(300, np.int64), rand=rand(), seed=seed)
            with pytest.raises(UnsafeUpdateError, match="not in this round's rotation"):
                prepare(noised, subject, rand=rand(), seed=self.SEED)
        noised = subject.mechanism.privatize(np.zeros(300, np.int64), rand=rand(), seed=self.SEED)
        np.testing.assert_array_equal(
            prepare(noised, subject, rand=rand(), seed=self.SEED), to_ring(noised.vector, modulus_bits=16)
        )


class TestNearLimit:
    """The one sign of too little head-room."""

    @staticmethod
    def count(total: np.ndarray, subject: AggregationConfig) -> int:
        words = to_ring(total + 5 * subject.offset, modulus_bits=subject.modulus_bits)
        return finish(words, subject, survivors=range(5)).near_limit

    @pytest.mark.parametrize("bits", [12, 16, 32])
    def test_counts_what_lies_beyond_three_quarters_of_the_range(self, bits: int) -> None:
        subject = config("none", bits=bits)
        edge = 3 * subject.ring.half_range // 4
        assert self.count(np.array([edge, -edge, 0]), subject) == 0
        assert self.count(np.array([edge + 1, -edge - 1, subject.ring.half_range - 1]), subject) == 3

    def test_sums_that_wrap_do_show(self) -> None:
        subject = config("client", length=1000, bits=16)
        wide = np.random.default_rng(1).normal(scale=2.0**15, size=1000).astype(np.int64)
        assert self.count(wide, subject) > 150


class TestNoisedIntegers:
    def test_of_the_own_mechanism_pass_unchanged(self) -> None:
        subject = config("client")
        assert subject.mechanism is not None
        noised = subject.mechanism.privatize(np.array([1, -2, 3]), rand=rand())
        np.testing.assert_array_equal(prepare(noised, subject, rand=rand()), to_ring(noised.vector, modulus_bits=32))

    @pytest.mark.parametrize("receiver", [config("client", epsilon=3.0), config("record"), config("none")])
    def test_of_another_mechanism_are_refused(self, receiver: AggregationConfig) -> None:
        mechanism = config("client").mechanism
        assert mechanism is not None
        noised = mechanism.privatize(np.zeros(3, np.int64), rand=rand())
        with pytest.raises(UnsafeUpdateError, match="another mechanism"):
            prepare(noised, receiver, rand=rand())


class TestRemovableNoise:
    @cached_property
    def subject(self) -> AggregationConfig:
        return AggregationConfig.cross_silo(
            like={"w": np.zeros(2000)},
            clients=6,
            max_dropouts=2,
            max_colluders=1,
            privacy=ClientLevel(clip_norm=CLIP, epsilon=4.0, delta=1e-6, rounds=1),
            dropout_noise="removable",
        )

    def round(self, survivors: int) -> tuple[np.ndarray, dict[ClientId, list[bytes]]]:
        """The ring sum of zero updates, and the seeds of what must go."""
        seeds = {ClientId(client): [rand()(32), rand()(32)] for client in range(1, survivors + 1)}
        words = [prepare({"w": np.zeros(2000)}, self.subject, rand=rand(), seeds=own) for own in seeds.values()]
        total: np.ndarray = np.sum(words, axis=0, dtype=np.uint32)
        return total, {client: own[6 - survivors :] for client, own in seeds.items()}

    @pytest.mark.parametrize("survivors", [4, 5, 6])
    def test_every_accepted_sum_has_the_noise_that_is_accounted(self, survivors: int) -> None:
        words, removed = self.round(survivors)
        there = range(1, survivors + 1)
        given = removed if survivors > 4 else {}
        mean = finish(words, self.subject, survivors=there, removed=given).mean["w"]
        expected = self.subject.noise_stddev(survivors) / survivors
        assert float(np.std(mean)) == pytest.approx(expected, rel=5 / math.sqrt(2 * 2000))
        assert self.subject.noise_stddev(survivors) <= self.subject.noise_stddev(4) * (1 + 1e-9)

    def test_seeds_of_all_survivors_are_needed(self) -> None:
        words, removed = self.round(6)
        for wrong in ({}, {client: seeds for client, seeds in removed.items() if client != 3}):
            with pytest.raises(ValueError, match="noise must be removed of 6 survivors"):
                finish(words, self.subject, survivors=range(1, 7), removed=wrong)
        fewer = {client: seeds[1:] for client, seeds in removed.items()}
        with pytest.raises(ValueError, match="6 survivors leave 2 superfluous components each"):
            finish(words, self.subject, survivors=range(1, 7), removed=fewer)

    def test_nothing_is_contributed_without_the_rounds_seeds(self) -> None:
        with pytest.raises(ValueError, match="seeds must be 2, one for each removable component, got 0"):
            prepare({"w": np.zeros(2000)}, self.subject, rand=rand())
        assert self.subject.mechanism is not None
        noised = self.subject.mechanism.privatize(np.zeros(2000, np.int64), rand=rand(), seeds=[bytes(32)] * 2)
        with pytest.raises(UnsafeUpdateError, match="integers cannot bring theirs"):
            prepare(noised, self.subject, rand=rand(), seeds=[bytes(32)] * 2)


class TestUnsafeUpdates:
    @pytest.mark.parametrize("unit", ["none", "client", "record"])
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda w: {"w": w[..., :2]},
            lambda w: {"w": w[..., None]},
            lambda w: {"w": w.astype(np.float32)},
            lambda w: {"w": w.astype(np.int64)},
            lambda w: {"v": w},
            lambda w: {"w": w, "v": w},
            lambda w: {},
            lambda w: w,
        ],
    )  # fmt: skip
    def test_are_refused(self, unit: str, spoil: Callable[[np.ndarray], Any]) -> None:
        good = np.full(3 if unit != "record" else (4, 3), 0.125)
        prepare({"w": good}, config(unit), rand=rand())
        with pytest.raises(UnsafeUpdateError):
            prepare(spoil(good), config(unit), rand=rand())

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("unit", ["none", "client"])
    def test_are_refused_if_not_finite(self, unit: str, value: float) -> None:
        with pytest.raises(UnsafeUpdateError, match="nan or inf"):
            prepare({"w": np.array([0.125, value, 0.125])}, config(unit), rand=rand())

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_record_that_is_not_finite_counts_as_zero(self, value: float) -> None:
        """Refusing would tell whether that one record was drawn."""
        subject = config("record", length=1, epsilon=200.0, rate=1.0)
        assert subject.mechanism is not None
        records = np.array([[CLIP / 2]] * 10 + [[value]])
        total = finish(prepare({"w": records}, subject, rand=rand()), subject, survivors=range(5)).total
        noise = math.sqrt(subject.mechanism.share_variance)
        assert 8 * noise < subject.encoder.int_bound
        assert abs(total[0] - 10 / 2 * subject.encoder.int_bound) < 8 * noise

    @pytest.mark.parametrize("length", [1, 1000])
    def test_an_update_that_is_only_huge_is_clipped(self, length: int) -> None:
        subject = config("none", length=length)
        mean = finish(prepare({"w": np.full(length, 1e300)}, subject, rand=rand()), subject, survivors=[1]).mean
        assert np.linalg.norm(mean["w"]) == pytest.approx(CLIP, rel=0.01)

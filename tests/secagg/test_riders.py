"""Weights and metrics in the masked vector: right means, one sensitivity for everything, nothing beside the vector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import secagg
from dp import secure_random
from secagg import AggregationConfig, ClientLevel, Contribution, NoPrivacy, PrivateWeights, RecordLevel
from secagg.pipeline import finish, prepare

LENGTH, CLIP = 6, 2.0
LIKE = {"w": np.zeros(LENGTH)}
RANGES = {"loss": (0.0, 8.0), "accuracy": (0.0, 1.0)}
NONE = NoPrivacy(clip_norm=CLIP)
CLIENT = ClientLevel(clip_norm=CLIP, epsilon=4.0, delta=1e-6, rounds=1)
RECORD = RecordLevel(clip_norm=CLIP, epsilon=4.0, delta=1e-6, rounds=1, sampling_rate=0.5, records=400)
PRIVATE = PrivateWeights(largest=50.0)


def silo(privacy: Any = NONE, *, clients: int = 5, **riders: Any) -> AggregationConfig:
    return AggregationConfig.cross_silo(
        like=LIKE, clients=clients, max_dropouts=1, max_colluders=0, privacy=privacy, **riders
    )


@st.composite
def contributions(draw: st.DrawFn, clients: int = 5) -> dict[int, Contribution]:
    """Short updates, weights in [1, 50], metrics within their ranges."""
    return {
        client: Contribution(
            update={"w": np.array(draw(st.lists(st.floats(-0.3, 0.3), min_size=LENGTH, max_size=LENGTH)))},
            weight=draw(st.floats(1, 50)),
            metrics={name: draw(st.floats(*ends)) for name, ends in RANGES.items()},
        )
        for client in range(1, clients + 1)
    }


def weighted(given: dict[int, Contribution], of: Any) -> Any:
    weights = np.array([contribution.weight for contribution in given.values()])
    values = np.array([of(contribution) for contribution in given.values()])
    return np.tensordot(weights, values, axes=1) / weights.sum()


class TestMeans:
    @given(given=contributions())
    def test_private_weights_give_the_weighted_means(self, given: dict[int, Contribution]) -> None:
        result = secagg.simulate(given, silo(weights=PRIVATE, metrics=RANGES))
        np.testing.assert_allclose(result.mean["w"], weighted(given, lambda c: c.update["w"]), atol=1e-5)
        assert result.weight == pytest.approx(sum(c.weight or 0 for c in given.values()), abs=1e-3)
        for name in RANGES:
            assert result.metrics[name] == pytest.approx(weighted(given, lambda c: c.metrics[name]), abs=1e-4)  # noqa: B023

    def test_public_weights_divide_by_the_survivors_weights(self) -> None:
        updates = {client: {"w": np.full(LENGTH, client / 20)} for client in range(1, 6)}
        weights = {client: 10.0 * client for client in updates}
        result = secagg.simulate(updates, silo(weights=weights), drop={2})
        assert result.weight == 130.0
        expected = sum(weights[c] * c / 20 for c in (1, 3, 4, 5)) / 130
        np.testing.assert_allclose(result.mean["w"], np.full(LENGTH, expected), atol=1e-6)

    def test_values_beyond_their_range_count_as_its_end(self) -> None:
        capped = Contribution(update={"w": np.zeros(LENGTH)}, weight=50.0, metrics={"loss": 8.0, "accuracy": 0.0})
        beyond = Contribution(update={"w": np.zeros(LENGTH)}, weight=1e9, metrics={"loss": math.inf, "accuracy": -7.0})
        result = secagg.simulate(dict.fromkeys(range(1, 6), beyond), silo(weights=PRIVATE, metrics=RANGES))
        same = secagg.simulate(dict.fromkeys(range(1, 6), capped), silo(weights=PRIVATE, metrics=RANGES))
        assert result.weight == pytest.approx(250, abs=1e-3) == pytest.approx(same.weight, abs=1e-3)
        assert result.metrics == pytest.approx({"loss": 8.0, "accuracy": 0.0}, abs=1e-4)

    def test_per_record_metrics_are_drawn_with_their_records(self) -> None:
        """Only records whose label is 1 have a gradient, and their metric is 1: the two sums must agree."""
        rng = np.random.default_rng(5)
        config = silo(RECORD, metrics={"positive": (-1.0, 1.0)})
        labels = {client: rng.integers(0, 2, size=80).astype(float) for client in range(1, 6)}
        rows = {client: np.outer(y, np.array([1.0, 0, 0, 0, 0, 0])) for client, y in labels.items()}
        noise = config.noise_stddev(5)
        result = secagg.simulate(
            {c: Contribution(update={"w": rows[c]}, metrics={"positive": labels[c]}) for c in rows}, config
        )
        drawn = result.mean["w"][0] * config.denominator(5)
        counted = result.metrics["positive"] * config.denominator(5)
        assert abs(drawn - counted) < 6 * noise * math.hypot(1, 1 / config.riders.unit(CLIP))
        assert abs(drawn - sum(map(np.sum, labels.values())) / 2) < 6 * (noise + math.sqrt(50))


class TestPrivacy:
    @given(
        update=st.lists(st.floats(-1e6, 1e6), min_size=LENGTH, max_size=LENGTH),
        weight=st.floats(0, 1e12),
        metrics=st.tuples(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12)),
    )
    def test_one_client_moves_the_whole_vector_by_at_most_the_bound(
        self, update: list[float], weight: float, metrics: tuple[float, float]
    ) -> None:
        """Without noise, what leaves `prepare` has the very norm that the mechanism is calibrated to."""
        config = silo(weights=PRIVATE, metrics=RANGES)
        given = Contribution(
            update={"w": np.array(update)}, weight=weight, metrics=dict(zip(RANGES, metrics, strict=True))
        )
        total = finish(prepare(given, config, rand=secure_random()), config, survivors=[1]).total
        assert total.shape == (LENGTH + 3,)
        assert sum(int(x) ** 2 for x in total) <= config.encoder.int_bound**2

    def test_a_clipped_update_does_not_crowd_out_the_riders(self) -> None:
        long = Contribution(update={"w": np.full(LENGTH, 1e5)}, weight=25.0, metrics={"loss": 6.0, "accuracy": 0.25})
        result = secagg.simulate(dict.fromkeys(range(1, 6), long), silo(weights=PRIVATE, metrics=RANGES))
        assert result.weight == pytest.approx(125, abs=1e-3)
        assert result.metrics == pytest.approx({"loss": 6.0, "accuracy": 0.25}, abs=1e-4)

    @pytest.mark.parametrize("riders", [{}, {"weights": PRIVATE}, {"weights": PRIVATE, "metrics": RANGES}])
    def test_riders_cost_three_percent_more_noise_once_and_no_epsilon(self, riders: dict[str, Any]) -> None:
        plain, subject = silo(CLIENT), silo(CLIENT, **riders)
        assert subject.ladder().guaranteed <= 4.0  # type: ignore[union-attr]
        ratio = subject.noise_stddev(5) / plain.noise_stddev(5)
        assert ratio == pytest.approx(math.sqrt(1 + 1 / 16) if riders else 1.0, rel=1e-3)

    def test_noise_on_riders_is_what_explain_says(self) -> None:
        config = silo(CLIENT, weights=PRIVATE, metrics=RANGES)
        lines = {line.name: line.value for line in config.explain()}
        still = Contribution(update={"w": np.zeros(LENGTH)}, weight=50.0, metrics={"loss": 4.0, "accuracy": 0.5})
        draws = []
        for _ in range(400):
            words = sum(prepare(still, config, rand=secure_random()).astype(np.uint64) for _ in range(4))
            released = finish((words % 2**32).astype(np.uint32), config, survivors=range(4))  # type: ignore[union-attr]
            draws.append(released.weight / 50 / 4 - 1)  # type: ignore[operator]
        assert np.std(draws) == pytest.approx(lines["rider_noise"], rel=0.15)

    def test_a_sum_of_weights_below_its_noise_does_not_blow_up_the_mean(self) -> None:
        config = silo(CLIENT, weights=PRIVATE)
        nothing = Contribution(update={"w": np.zeros(LENGTH)}, weight=0.0)
        for _ in range(20):
            result = secagg.simulate(dict.fromkeys(range(1, 6), nothing), config)
            assert np.abs(result.mean["w"]).max() < 8 * config.riders.unit(CLIP)

    def test_nothing_travels_beside_the_vector(self) -> None:
        """The same seeds aside, messages have the same sizes whatever the weights are."""
        config = silo(CLIENT, weights=PRIVATE, metrics=RANGES)
        sizes = []
        for weight, loss in ((0.0, 0.0), (50.0, 8.0)):
            given = Contribution(update={"w": np.zeros(LENGTH)}, weight=weight, metrics={"loss": loss, "accuracy": 0.5})
            seen: list[tuple[int, str, int]] = []
            secagg.Simulation(config, clients=range(1, 6)).round(
                dict.fromkeys(range(1, 6), given),
                tap=lambda c, phase, data: seen.append((c, phase.value, len(data))),  # noqa: B023
            )
            sizes.append(seen)
        assert sizes[0] == sizes[1]
        assert config.upload_bytes == 4 * (LENGTH + 3)


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (Contribution(update=LIKE), "private weights"),
            (Contribution(update=LIKE, weight=math.nan), "private weights"),
            (Contribution(update=LIKE, weight=-1.0), "private weights"),
            (Contribution(update=LIKE, weight=1.0), "missing"),
            (Contribution(update=LIKE, weight=1.0, metrics={"loss": 1.0, "other": 1.0}), "unknown"),
            (Contribution(update=LIKE, weight=1.0, metrics={"loss": math.nan, "accuracy": 1.0}), "loss"),
            (Contribution(update=LIKE, weight=1.0, metrics={"loss": [1.0], "accuracy": 1.0}), "shape"),
            (LIKE, "private weights"),
        ],
    )
    def test_contributions_that_do_not_fit(self, given: Any, words: str) -> None:
        with pytest.raises(secagg.UnsafeUpdateError, match=words):
            prepare(given, silo(weights=PRIVATE, metrics=RANGES), rand=secure_random(), client=1)

    def test_a_record_with_a_nan_metric_counts_as_absent_and_nobody_sees_a_refusal(self) -> None:
        """A client that falls silent over one record tells the server about it, and nothing accounts for that."""
        sure = RecordLevel(clip_norm=CLIP, epsilon=1e9, delta=1e-6, rounds=1, sampling_rate=1.0, records=5)
        config = silo(sure, metrics={"loss": (0.0, 8.0)})
        sums = []
        for loss in ([2.0, math.nan], [2.0]):
            rows = np.ones((len(loss), LENGTH))
            given = Contribution(update={"w": rows}, metrics={"loss": loss})
            words = prepare(given, config, rand=b"\x7f".__mul__)
            sums.append(finish(words, config, survivors=range(5)).total)
        np.testing.assert_array_equal(*sums)

    def test_a_weight_nobody_asked_for(self) -> None:
        with pytest.raises(secagg.UnsafeUpdateError, match="no private weights"):
            prepare(Contribution(update=LIKE, weight=1.0), silo(), rand=secure_random())

    def test_a_client_without_public_weight(self) -> None:
        config = silo(weights=dict.fromkeys(range(5), 1.0))
        with pytest.raises(ValueError, match=r"\[5\] have no public weight"):
            secagg.Simulation(config, clients=range(1, 6))
        with pytest.raises(secagg.UnsafeUpdateError, match="client 5 has no public weight"):
            prepare(LIKE, config, rand=secure_random(), client=5)

    @pytest.mark.parametrize(
        ("privacy", "riders", "words"),
        [
            (RECORD, {"weights": PRIVATE}, "RecordLevel takes no weights"),
            (NONE, {"weights": {1: 1.0}}, "public weight each"),
            (NONE, {"weights": dict.fromkeys(range(5), 0.0)}, "weight of client 0"),
            (NONE, {"weights": dict.fromkeys(range(5), math.nan)}, "weight of client 0"),
            (NONE, {"metrics": {"loss": (1.0, 1.0)}}, "finite range"),
            (NONE, {"metrics": {"loss": (0.0, math.inf)}}, "finite range"),
        ],
    )
    def test_configurations_that_do_not_fit(self, privacy: Any, riders: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            silo(privacy, **riders)

    @pytest.mark.parametrize("largest", [0.0, -1.0, math.inf, math.nan])
    def test_caps_that_are_none(self, largest: float) -> None:
        with pytest.raises(ValueError, match="largest"):
            PrivateWeights(largest=largest)


def test_the_statement_names_public_weights_as_not_hidden() -> None:
    line = "the public weight of every client"
    weights = dict.fromkeys(range(5), 1.0)
    assert line in secagg.statement(silo(CLIENT, weights=weights)).partition("Not hidden")[2]
    assert line not in secagg.statement(silo(CLIENT, weights=PRIVATE))


def test_the_statement_names_what_rides() -> None:
    text = secagg.statement(silo(CLIENT, weights=PRIVATE, metrics=RANGES))
    assert "sums of weights, loss, accuracy: they ride in the same vector" in text
    assert "ride" not in secagg.statement(silo(CLIENT))

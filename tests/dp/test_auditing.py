"""Audit statistics: golden values, other libraries' functions, and bounds that hold as often as they promise."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dp.auditing import (
    audit,
    auroc,
    binomial_tails,
    clopper_pearson,
    correct_guesses,
    epsilon_clopper_pearson,
    epsilon_gdp,
    epsilon_of_gaussian,
    epsilon_one_run,
    epsilon_one_run_fdp,
    true_positive_rate,
)

DELTA = 1e-5


def mu_of(epsilon: float) -> float:
    """The Gaussian whose epsilon at DELTA is this."""
    low, high = 1e-3, 20.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of_gaussian(middle, DELTA) < epsilon else (low, middle)
    return low


class TestOneRun:
    @pytest.mark.parametrize(
        ("guesses", "correct", "alpha", "expected"),
        [
            (100, 100, 0.05, 3.4791954),
            (100, 100, 0.01, 3.0231976),
            (35, 23, 0.05, 0.0145487),
            (100, 60, 0.05, 0.0507356),
            (95, 58, 0.05, 0.0836620),
            (30, 23, 0.05, 0.4264876),
            (30, 23, 0.01, 0.1600543),
        ],
    )
    def test_golden_values(self, guesses: int, correct: int, alpha: float, expected: float) -> None:
        value = epsilon_one_run(correct=correct, guesses=guesses, canaries=500, delta=DELTA, confidence=1 - alpha)
        assert value == pytest.approx(expected, abs=5.1e-8)

    @pytest.mark.parametrize("guesses", [10, 100, 1000])
    def test_the_ceiling_without_delta(self, guesses: int) -> None:
        value = epsilon_one_run(correct=guesses, guesses=guesses, canaries=guesses, delta=0, confidence=0.95)
        odds = 0.05 ** (1 / guesses)
        assert value == pytest.approx(math.log(odds / (1 - odds)), abs=1e-6)

    @given(data=st.data(), canaries=st.integers(1, 60))
    def test_more_correct_guesses_prove_more_and_more_confidence_less(self, data: st.DataObject, canaries: int) -> None:
        guesses = data.draw(st.integers(1, canaries))
        correct = data.draw(st.integers(1, guesses))
        for bound in (epsilon_one_run, epsilon_one_run_fdp):
            value = bound(correct=correct, guesses=guesses, canaries=canaries, delta=DELTA, confidence=0.9)
            assert value >= bound(correct=correct - 1, guesses=guesses, canaries=canaries, delta=DELTA, confidence=0.9)
            assert value >= bound(correct=correct, guesses=guesses, canaries=canaries, delta=DELTA, confidence=0.99)

    def test_guessing_at_random_proves_nothing(self) -> None:
        for bound in (epsilon_one_run, epsilon_one_run_fdp):
            assert bound(correct=50, guesses=100, canaries=100, delta=DELTA, confidence=0.95) == 0.0

    @pytest.mark.parametrize(
        "counts", [(3, 2, 5), (-1, 2, 5), (2, 6, 5), (0, 0, 5)], ids=["right", "negative", "guesses", "none"]
    )
    def test_counts_that_cannot_be(self, counts: tuple[int, int, int]) -> None:
        correct, guesses, canaries = counts
        with pytest.raises(ValueError, match="counts must be"):
            epsilon_one_run(correct=correct, guesses=guesses, canaries=canaries, delta=DELTA, confidence=0.95)


class TestOracles:
    @given(trials=st.integers(1, 300), probability=st.floats(0, 1))
    def test_binomial_tails_are_those_of_scipy(self, trials: int, probability: float) -> None:
        expected = stats.binom.sf(np.arange(trials + 1) - 1, trials, probability)
        np.testing.assert_allclose(binomial_tails(trials, probability), expected, atol=1e-11)

    @given(trials=st.integers(1, 500), data=st.data(), confidence=st.floats(0.5, 0.9999))
    def test_clopper_pearson_is_that_of_scipy(self, trials: int, data: st.DataObject, confidence: float) -> None:
        successes = data.draw(st.integers(0, trials))
        low, high = clopper_pearson(successes, trials, confidence=confidence)
        for own, side, end in ((low, "greater", "low"), (high, "less", "high")):
            interval = stats.binomtest(successes, trials, alternative=side).proportion_ci(confidence, method="exact")
            assert own == pytest.approx(getattr(interval, end), abs=1e-6)

    @pytest.mark.parametrize("mu", [0.05, 0.3, 1.0, 3.0])
    def test_the_gaussian_curve_is_that_of_dp_accounting(self, mu: float) -> None:
        from dp_accounting import dp_event
        from dp_accounting.pld import PLDAccountant

        accountant = PLDAccountant(value_discretization_interval=1e-4)
        accountant.compose(dp_event.GaussianDpEvent(1 / mu))
        assert epsilon_of_gaussian(mu, DELTA) == pytest.approx(accountant.get_epsilon(DELTA), abs=2e-3)

    def test_the_gaussian_curve_far_out(self) -> None:
        assert epsilon_of_gaussian(0.0, DELTA) == 0.0
        assert epsilon_of_gaussian(40.0, DELTA) == pytest.approx(800 + 40 * NormalDist().inv_cdf(1 - DELTA), rel=0.01)

    @given(
        included=st.lists(st.integers(0, 5), min_size=1, max_size=30),
        excluded=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    )
    def test_auroc_counts_pairs(self, included: list[int], excluded: list[int]) -> None:
        own = auroc(np.array(included, dtype=float), np.array(excluded, dtype=float))
        pairs = [(a > b) + (a == b) / 2 for a in included for b in excluded]
        assert own == pytest.approx(np.mean(pairs))

    def test_true_positive_rate(self) -> None:
        included, excluded = np.arange(50, 150.0), np.arange(100.0)
        assert true_positive_rate(included, excluded, false_positive_rate=0.0) == 0.5
        assert true_positive_rate(included, excluded, false_positive_rate=0.1) == 0.6
        assert true_positive_rate(included, excluded, false_positive_rate=1.0) == 1.0


class TestGuesses:
    def test_highest_are_in_and_lowest_out(self) -> None:
        included, excluded = np.array([3.0, 2.0, -5.0]), np.array([-1.0, -2.0, 9.0])
        assert correct_guesses(included, excluded, guesses=2) == 0
        assert correct_guesses(included, excluded, guesses=4) == 2
        assert correct_guesses(included, excluded, guesses=6) == 4

    def test_ties_never_help(self) -> None:
        assert correct_guesses(np.zeros(10), np.zeros(10), guesses=20) == 0


class TestCoverage:
    """Bounds exceed the truth no more often than they say, and are not empty."""

    TRUTH = 2.0

    def scores(self, seed: int, canaries: int = 2000) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        truth = rng.random(canaries) < 0.5
        scores = rng.normal(size=canaries) + mu_of(self.TRUTH) * truth
        return scores[truth], scores[~truth]

    def test_over_many_audits(self) -> None:
        thresholds = [mu_of(self.TRUTH) * step for step in (-0.5, 0.5, 1.5)]
        wrong, found = 0, []
        for seed in range(60):
            bounds = audit(*self.scores(seed), delta=DELTA, thresholds=thresholds, independent=True, confidence=0.9)
            wrong += bounds.epsilon > self.TRUTH
            found.append(bounds.epsilon)
        assert wrong <= stats.binom.ppf(0.9999, 60, 0.1)
        assert np.median(found) > 0.8

    def test_each_estimator_alone(self) -> None:
        wrong = dict.fromkeys(("one run", "f-DP", "Clopper-Pearson", "Gaussian"), 0)
        for seed in range(150):
            included, excluded = self.scores(seed, 400)
            right = correct_guesses(included, excluded, guesses=100)
            run = {"correct": right, "guesses": 100, "canaries": 400, "delta": DELTA, "confidence": 0.8}
            counts = {
                "true_positives": int((included > 0.5).sum()), "included": len(included),
                "false_positives": int((excluded > 0.5).sum()), "excluded": len(excluded),
                "delta": DELTA, "confidence": 0.8,
            }  # fmt: skip
            wrong["one run"] += epsilon_one_run(**run) > self.TRUTH  # type: ignore[arg-type]
            wrong["f-DP"] += epsilon_one_run_fdp(**run) > self.TRUTH  # type: ignore[arg-type]
            wrong["Clopper-Pearson"] += epsilon_clopper_pearson(**counts) > self.TRUTH  # type: ignore[arg-type]
            wrong["Gaussian"] += epsilon_gdp(**counts) > self.TRUTH  # type: ignore[arg-type]
        assert max(wrong.values()) <= stats.binom.ppf(0.9999, 150, 0.2), wrong

    def test_a_mechanism_that_leaks_is_caught(self) -> None:
        rng = np.random.default_rng(1)
        bounds = audit(
            rng.normal(size=500) + 50, rng.normal(size=500), delta=DELTA, thresholds=[25.0], independent=True
        )
        assert bounds.auroc == 1.0
        assert bounds.bounds["one run"] > 4.0
        assert bounds.bounds["Clopper-Pearson"] > 4.0
        assert bounds.epsilon == max(bounds.bounds.values())

    def test_dependent_scores_get_one_run_bounds_only(self) -> None:
        bounds = audit(*self.scores(1), delta=DELTA, thresholds=[1.0], independent=False)
        assert set(bounds.bounds) == {"one run", "one run, f-DP"}
        with_more = audit(*self.scores(1), delta=DELTA, thresholds=[1.0], independent=True)
        assert with_more.bounds["one run"] <= bounds.bounds["one run"]  # every further try is paid for


class TestRefusals:
    def test_nothing_to_audit(self) -> None:
        some = np.zeros(3)
        with pytest.raises(ValueError, match="both sides"):
            audit(some, np.zeros(0), delta=DELTA, thresholds=[0.0], independent=True)
        with pytest.raises(ValueError, match="threshold"):
            audit(some, some, delta=DELTA, thresholds=[], independent=True)
        with pytest.raises(ValueError, match="nan"):
            audit(some, np.array([math.nan]), delta=DELTA, thresholds=[0.0], independent=True)

    @pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan])
    def test_confidence(self, confidence: float) -> None:
        with pytest.raises(ValueError, match="confidence"):
            audit(np.zeros(1), np.zeros(1), delta=DELTA, thresholds=[0.0], independent=True, confidence=confidence)

    @pytest.mark.parametrize("delta", [-0.1, 1.0, math.nan])
    def test_delta(self, delta: float) -> None:
        with pytest.raises(ValueError, match="delta"):
            epsilon_one_run(correct=1, guesses=1, canaries=1, delta=delta, confidence=0.9)

    def test_rates(self) -> None:
        with pytest.raises(ValueError, match="count"):
            epsilon_gdp(true_positives=3, included=2, false_positives=0, excluded=1, delta=DELTA, confidence=0.9)

    def test_perfect_rates_do_not_divide_by_zero(self) -> None:
        counts = {"true_positives": 0, "included": 5, "false_positives": 5, "excluded": 5, "delta": DELTA}
        assert epsilon_gdp(**counts, confidence=0.9) == 0.0  # type: ignore[arg-type]
        assert epsilon_clopper_pearson(**counts, confidence=0.9) == 0.0  # type: ignore[arg-type]

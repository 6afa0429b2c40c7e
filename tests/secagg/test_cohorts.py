"""Many cohorts: a fair and public draw, sums that are exact, few liars that move little, and an honest epsilon."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, hypergeom

import secagg
from dp import PrivacyLedger, UInt32Vector
from protocols import ClientId, Phase
from secagg.cohorts import (
    MEDIAN_EFFICIENCY,
    Cohort,
    CohortSimulation,
    Rule,
    assign,
    clipped_mean,
    combine,
    mean,
    median,
    tolerated_colluders,
    trimmed_mean,
)
from secagg.pipeline import Update
from secagg.simulation import ObservedClient
from secagg.tails import log_any, log_binomial_tail, log_hypergeometric_tail

from .parties import fates, plain_config, private_config, updates_for

IDS = range(1, 16)  # three cohorts of five
RULES: list[Rule] = [mean, median, partial(trimmed_mean, trim=1), partial(clipped_mean, radius=1.0)]
LIARS = {2, 9}


def updates(seed: int = 0) -> dict[int, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {client: {"w": rng.uniform(-0.4, 0.4, size=4)} for client in IDS}


class TestDraw:
    @given(
        st.sets(st.integers(1, 10**6), min_size=12, max_size=12),
        st.sampled_from([1, 2, 3, 4, 6, 12]),
        st.binary(min_size=32, max_size=32),
    )
    def test_puts_each_client_into_one_cohort(self, clients: set[int], cohorts: int, round_id: bytes) -> None:
        dealt = assign(clients, cohorts, round_id=round_id)
        assert sorted(client for members in dealt for client in members) == sorted(clients)
        assert {len(members) for members in dealt} == {12 // cohorts}
        assert dealt == assign(sorted(clients, reverse=True), cohorts, round_id=round_id)

    def test_is_fair(self) -> None:
        """How often two given clients meet is binomial with rate (m - 1) / (n - 1)."""
        rounds = 2000
        met = sum(
            {1, 2} <= set(members) or not {1, 2} & set(members)
            for number in range(rounds)
            for members in assign(range(1, 9), 2, round_id=number.to_bytes(32, "big"))[:1]
        )
        assert binom.cdf(met, rounds, 3 / 7) > 1e-6
        assert binom.sf(met, rounds, 3 / 7) > 1e-6

    @pytest.mark.parametrize(("clients", "cohorts", "length"), [(10, 3, 32), (10, 0, 32), (10, 20, 32), (10, 2, 31)])
    def test_refuses_what_does_not_fit(self, clients: int, cohorts: int, length: int) -> None:
        with pytest.raises(ValueError, match=r"cohorts|bytes"):
            assign(range(clients), cohorts, round_id=bytes(length))

    @pytest.mark.parametrize(("clients", "cohorts", "most"), [(1000, 10, 30), (300, 3, 20), (20, 4, 1)])
    def test_colluders_are_spread_as_an_oracle_says(self, clients: int, cohorts: int, most: int) -> None:
        tolerated = tolerated_colluders(clients, cohorts, max_colluders=most)
        assert tolerated >= most

        def exposed(colluders: int) -> float:
            return cohorts * float(hypergeom.sf(most, clients, colluders, clients // cohorts))

        assert exposed(tolerated) <= 2.0**-80 or tolerated == most
        assert exposed(tolerated + 1) > 2.0**-80 * (1 - 1e-6)

    def test_tails_agree_with_an_oracle(self) -> None:
        for least in (0, 1, 5, 30, 31):
            expected = binom.logsf(least - 1, 30, 0.2) if least <= 30 else -math.inf
            assert log_binomial_tail(least, trials=30, rate=0.2) == pytest.approx(expected, rel=1e-9, abs=1e-12)
            drawn = hypergeom.sf(least - 1, 90, 30, 40)
            got = math.exp(log_hypergeometric_tail(least, population=90, marked=30, draws=40))
            assert got == pytest.approx(drawn, rel=1e-6, abs=1e-15)
        assert (log_binomial_tail(1, trials=3, rate=0.0), log_binomial_tail(3, trials=3, rate=1.0)) == (-math.inf, 0.0)
        assert log_any(5, math.log(0.5)) == 0.0


class TestRules:
    @given(
        honest=arrays(np.float64, (5, 3), elements=st.floats(-10, 10)),
        lies=arrays(np.float64, (2, 3), elements=st.floats(-1e9, 1e9)),
    )
    def test_liars_stay_between_the_honest(self, honest: np.ndarray, lies: np.ndarray) -> None:
        values = np.concatenate([lies, honest])
        low, high = honest.min(axis=0) - 1e-9, honest.max(axis=0) + 1e-9
        for rule in (median, partial(trimmed_mean, trim=2)):
            result = rule(values)
            assert np.all((low <= result) & (result <= high))
        moved = clipped_mean(values, radius=0.5)
        assert np.linalg.norm(moved - median(values)) <= 0.5 + 1e-6

    def test_the_plain_mean_does_not(self) -> None:
        values = np.concatenate([np.full((1, 3), 1e6), np.zeros((6, 3))])
        assert np.all(mean(values) > 1e5)

    @pytest.mark.parametrize("cohorts", [3, 4, 7, 20])
    def test_noise_costs_what_is_said(self, cohorts: int) -> None:
        noise = np.random.default_rng(cohorts).normal(size=(cohorts, 40_000))
        assert mean(noise).std() == pytest.approx(1 / math.sqrt(cohorts), rel=0.03)
        trims = range((cohorts + 1) // 2)
        for rule in (median, *(partial(trimmed_mean, trim=trim) for trim in trims)):
            assert rule(noise).std() < MEDIAN_EFFICIENCY / math.sqrt(cohorts) * 1.02
        if cohorts == 20:  # the bound is no exaggeration
            assert median(noise).std() > 0.95 * MEDIAN_EFFICIENCY / math.sqrt(cohorts)

    def test_refuse_numbers_that_make_no_sense(self) -> None:
        values = np.zeros((4, 2))
        with pytest.raises(ValueError, match="from 0 to 1 for 4"):
            trimmed_mean(values, trim=2)
        for radius in (0.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="radius"):
                clipped_mean(values, radius=radius)
        with pytest.raises(ValueError, match="no cohort"):
            combine([])
        with pytest.raises(secagg.UnsafeUpdateError):
            combine([{"w": np.zeros(3)}, {"w": np.zeros(4)}])

    def test_combine_keeps_names_and_dtypes(self) -> None:
        means = [{"a": np.full((2, 2), value, np.float32), "b": np.full(1, -value)} for value in (1.0, 2.0, 9.0)]
        combined = combine(means)
        assert combined["a"].dtype == np.float32
        assert np.array_equal(combined["a"], np.full((2, 2), 2.0, np.float32))
        assert combined["b"].tolist() == [-2.0]


class Liar(ObservedClient):
    """Sends words of its own choice, far beyond its clip: masked, nobody can see it."""

    def prepare(self, update: Update) -> UInt32Vector:
        words = super().prepare(update)
        if self.client_id in LIARS:
            words = self.prepared = np.full_like(words, 2**28)
        return words


class LyingCohort(Cohort):
    client_type = Liar


class Lying(CohortSimulation):
    cohort_type = LyingCohort


class TestRounds:
    @pytest.mark.parametrize("rule", RULES)
    def test_exact_sums_and_the_rule_over_them(self, rule: Rule) -> None:
        simulation = CohortSimulation(plain_config(5), clients=IDS, bad_cohorts=1)
        given_updates = updates()
        result = simulation.round(given_updates, rule=rule, drop={4})
        assert simulation.exact_sums == 3
        assert result.survivors == {ClientId(client) for client in IDS} - {4}
        by_hand = [np.mean([given_updates[c]["w"] for c in one.survivors], axis=0) for one in result.cohorts]
        assert np.allclose(result.mean["w"], rule(np.array(by_hand)), atol=1e-5)
        assert result.epsilon == math.inf

    def test_without_noise_the_plain_mean_is_that_of_one_aggregation(self) -> None:
        result = CohortSimulation(plain_config(5), clients=IDS, bad_cohorts=1).round(updates(), rule=mean)
        assert np.allclose(result.mean["w"], np.mean([u["w"] for u in updates().values()], axis=0), atol=1e-5)

    def test_liars_move_a_median_little_and_a_mean_much(self) -> None:
        ids = range(1, 26)
        rng = np.random.default_rng(1)
        given_updates = {client: {"w": rng.uniform(-0.4, 0.4, size=4)} for client in ids}
        for seed in range(3):
            simulation = Lying(plain_config(5), clients=ids, bad_cohorts=2)
            result = simulation.round(given_updates, model={"w": np.full(4, float(seed))})
            honest = np.array([one.mean["w"] for one in result.cohorts if not LIARS & one.survivors])
            assert len(honest) >= 3
            assert np.all(honest.min(axis=0) <= result.mean["w"])
            assert np.all(result.mean["w"] <= honest.max(axis=0))
            means = [one.mean for one in result.cohorts]
            assert np.all(np.abs(combine(means, mean)["w"]) > 3)

    def test_metrics_are_combined_too(self) -> None:
        config = plain_config(5, metrics={"loss": (0.0, 1.0)})
        contributions = {
            client: secagg.Contribution(update=update, metrics={"loss": client / 15})
            for client, update in updates().items()
        }
        result = CohortSimulation(config, clients=IDS, bad_cohorts=1).round(contributions)
        assert result.metrics["loss"] == pytest.approx(np.median([one.metrics["loss"] for one in result.cohorts]))

    def test_cohorts_change_from_round_to_round(self) -> None:
        simulation = CohortSimulation(plain_config(5), clients=IDS, bad_cohorts=1)
        seen = [
            frozenset(one.survivors for one in simulation.round(updates(), model={"w": np.full(4, float(r))}).cohorts)
            for r in range(3)
        ]
        assert len(set(seen)) > 1

    @pytest.mark.parametrize(
        ("clients", "bad", "message"), [(14, 1, "fill"), (0, 0, "fill"), (15, 2, "from 0 to 1"), (15, -1, "from 0")]
    )
    def test_refuse_numbers_that_do_not_fit(self, clients: int, bad: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            CohortSimulation(plain_config(5), clients=range(clients), bad_cohorts=bad)

    def test_refuse_a_clip_norm_that_would_differ(self) -> None:
        unit = secagg.ClientLevel(clip_norm=secagg.AdaptiveClipping(initial=1.0), epsilon=50.0, delta=1e-6, rounds=1)
        adaptive = secagg.AggregationConfig.cross_silo(
            like={"w": np.zeros(4)}, clients=5, max_dropouts=1, max_colluders=0, privacy=unit
        )
        with pytest.raises(ValueError, match="adaptive"):
            CohortSimulation(adaptive, clients=IDS, bad_cohorts=1)

    def test_narrow_rings_rotate(self) -> None:
        config = private_config(5, rounds=1, epsilon=50.0, modulus_bits=16)
        result = CohortSimulation(config, clients=IDS, bad_cohorts=1).round(updates(), rule=mean)
        assert np.allclose(result.mean["w"], np.mean([u["w"] for u in updates().values()], axis=0), atol=0.5)

    def test_refuse_weights_and_strangers(self) -> None:
        weighed = plain_config(5, weights=secagg.PrivateWeights(largest=1.0))
        with pytest.raises(ValueError, match="weights"):
            CohortSimulation(weighed, clients=IDS, bad_cohorts=1)
        with pytest.raises(ValueError, match="do not take part"):
            CohortSimulation(plain_config(5), clients=IDS, bad_cohorts=1).round(updates(), drop={99})


class TestBudget:
    def test_a_round_costs_what_one_cohort_costs(self, tmp_path: Path) -> None:
        config = private_config(5, rounds=3)
        simulation = CohortSimulation(config, clients=IDS, bad_cohorts=1, ledger_directory=tmp_path)
        result = simulation.round(updates())
        alone = secagg.simulate(updates_for(config), config)
        assert result.epsilon == alone.epsilon
        result = simulation.round(updates(), drop={4})  # the cohort of client 4 is the costliest
        simulation.close()
        expected = secagg.Simulation(config, clients=range(1, 6))
        expected.round(updates_for(config))
        assert result.epsilon == expected.round(updates_for(config), drop={4}).epsilon
        with PrivacyLedger.open(tmp_path / "server.ledger") as server:
            spent = server.state().filter_spent
        for client in IDS:
            with PrivacyLedger.open(tmp_path / f"client-{client}.ledger") as ledger:
                assert len(fates(ledger)) == 2
                assert ledger.state().filter_spent <= spent
        text = result.statement()
        for part in ("epsilon of one cohort", "1.73 times", "2.17 times", "at most 1 clients of each cohort"):
            assert part in text
        noiseless = CohortSimulation(plain_config(5), clients=IDS, bad_cohorts=1).round(updates())
        assert "times the noise" not in noiseless.statement()

    def test_ledgers_are_continued_and_end_the_run(self, tmp_path: Path) -> None:
        config = private_config(5, rounds=1)
        for expected in (1, 0):
            simulation = CohortSimulation(config, clients=IDS, bad_cohorts=1, ledger_directory=tmp_path)
            if expected:
                simulation.round(updates())
            else:
                with pytest.raises(secagg.BudgetExceededError):
                    simulation.round(updates())
            simulation.close()

    def test_an_aborted_cohort_is_left_out(self) -> None:
        silent = {1, 2}  # until both meet in one cohort, which has too few then
        for _ in range(40):
            simulation = CohortSimulation(private_config(5), clients=IDS, bad_cohorts=1)
            result = simulation.round(updates(), drop=silent)
            if result.aborted:
                break
        assert len(result.cohorts) == 2
        assert isinstance(result.aborted[0], secagg.TooFewClientsError)
        assert result.survivors.isdisjoint(silent)
        assert len(result.survivors) == 10

    def test_too_many_aborted_cohorts_are_no_result_and_are_charged_if_they_unmasked(self) -> None:
        for phase, costs in ((Phase.MASKED_INPUT, False), (Phase.UNMASK, True)):
            config = private_config(5)
            simulation = CohortSimulation(config, clients=IDS, bad_cohorts=1)
            with pytest.raises(secagg.TooFewClientsError, match="3 of 3 cohorts"):
                simulation.round(updates(), drop=dict.fromkeys(IDS, phase))
            ledger = simulation._ledgers["server"]
            assert [fate for fate, _ in fates(ledger)] == ["commit" if costs else "release"]
            assert (ledger.state().filter_spent > 0) is costs

    def test_the_noise_is_that_of_every_cohort(self) -> None:
        config = private_config(5, rounds=1)
        result = CohortSimulation(config, clients=IDS, bad_cohorts=1).round(updates())
        assert result.noise_stddev == pytest.approx(config.noise_stddev(5) / 5 / math.sqrt(3))
        assert Counter(len(one.survivors) for one in result.cohorts) == {5: 3}

"""Planning a population: what is predicted is what was measured, counted, or computed by other means."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

import secagg
from benchmarks.costs import COSTS, fit, load, measured, render
from benchmarks.harness import RESULTS
from benchmarks.sizes import downloads, uploads
from protocols.primitives.keys import SUITES
from secagg.cli import main
from secagg.cohorts import tolerated_colluders
from secagg.planning import Size, plan_population, predict, shipped_costs

from .parties import plain_config
from .test_cli import SCHEMA, options

ROUNDS = [one for facts in load(RESULTS).values() for one in measured(facts)]
SIZES = sorted({size for size, _, _ in ROUNDS}, key=str)
WITHIN = 0.25


def private(clients: int = 20, *, rounds: int = 3) -> secagg.AggregationConfig:
    return secagg.AggregationConfig.cross_silo(
        like={"w": np.zeros(100)}, clients=clients, max_dropouts=5, max_colluders=2,
        privacy=secagg.ClientLevel(clip_norm=1.5, epsilon=4.0, delta=1e-6, rounds=rounds),
    )  # fmt: skip


def planned(config: secagg.AggregationConfig, **numbers: float) -> dict[str, object]:
    return {line.name: line.value for line in plan_population(config, **numbers)}  # type: ignore[arg-type]


class TestCosts:
    def test_are_those_of_the_results(self) -> None:
        assert COSTS.read_text() == render(load(RESULTS)), "run `python -m benchmarks costs`"

    def test_name_the_results_and_the_machine(self) -> None:
        costs = shipped_costs()
        for name in costs["from"]:
            assert (Path(RESULTS) / name).exists()
        assert costs["machines"]

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_predict_a_size_that_was_held_out(self, size: Size) -> None:
        rest = [one for one in ROUNDS if one[0] != size]
        cost = predict(size, {**shipped_costs(), "seconds": fit(rest)})
        for known, client_s, server_s in ROUNDS:
            if known == size:
                assert cost.client_s == pytest.approx(client_s, rel=WITHIN)
                assert cost.server_s == pytest.approx(server_s, rel=WITHIN)

    @pytest.mark.parametrize("suite", sorted(SUITES))
    @pytest.mark.parametrize(("clients", "degree"), [(50, 49), (700, 140), (5000, 190)])
    def test_bytes_are_those_of_the_messages(self, suite: int, clients: int, degree: int) -> None:
        size = Size(clients=clients, degree=degree, dropouts=0, vector_bytes=4000, suite=suite)
        cost = predict(size, shipped_costs())
        up = uploads(clients=clients, degree=degree, vector_bytes=4000, suite=SUITES[suite])
        down = downloads(clients=clients, degree=degree, suite=SUITES[suite])
        assert cost.upload_bytes == pytest.approx(sum(up.values()), rel=0.01)
        assert cost.download_bytes == pytest.approx(sum(down.values()), rel=0.02)

    def test_growth_is_what_costs_mean(self) -> None:
        """No slope is negative: more of anything never costs less."""
        for side in shipped_costs()["seconds"].values():
            assert all(slope >= 0 for slope in side.values())


class TestPopulation:
    def test_cohorts_and_who_sits_out(self) -> None:
        facts = planned(private(), population=1013, dropout_rate=0.1)
        assert (facts["population.cohorts"], facts["population.clients"]) == (50, 1000)
        assert facts["population.colluders"] == tolerated_colluders(1000, 50, max_colluders=2)
        assert facts["population.noise_factor"] == math.sqrt(50)
        assert facts["population.noise_factor_median"] == pytest.approx(math.sqrt(50 * math.pi / 2))

    def test_one_cohort_has_no_price(self) -> None:
        config = private()
        facts = planned(config, population=20, dropout_rate=0.1)
        rungs = config.ladder()
        assert rungs is not None
        assert facts["population.noise_factor"] == 1.0
        assert facts["population.epsilon_alone"] == pytest.approx(rungs.to_dict()["guaranteed"])

    def test_one_aggregation_would_cost_less(self) -> None:
        alone = [
            planned(private(), population=20 * cohorts, dropout_rate=0.1)["population.epsilon_alone"]
            for cohorts in (1, 4, 16)
        ]
        assert alone == sorted(alone, reverse=True)  # type: ignore[type-var]
        # In the limit of small epsilon, four times the deviation costs a quarter; here it costs less than half.
        assert float(alone[2]) < float(alone[0]) / 2  # type: ignore[arg-type]

    @pytest.mark.parametrize(("rate", "bad"), [(0.05, 0), (0.2, 3), (0.0, 0)])
    def test_failure_agrees_with_an_oracle(self, rate: float, bad: int) -> None:
        facts = planned(private(), population=400, dropout_rate=rate, bad_cohorts=bad)
        one = binom.sf(5, 20, rate)
        assert facts["population.cohort_failure"] == pytest.approx(one, rel=1e-6)
        assert facts["population.round_failure"] == pytest.approx(binom.sf(bad, 20, one), rel=1e-6)

    def test_costs_are_predictions_for_every_cohort(self) -> None:
        config = private()
        facts = planned(config, population=400, dropout_rate=0.1)
        size = Size(clients=20, degree=19, dropouts=2, vector_bytes=config.upload_bytes, suite=2)
        cost = predict(size, shipped_costs())
        assert facts["population.client.cpu_s"] == cost.client_s
        assert facts["population.server.cpu_s"] == pytest.approx(20 * cost.server_s)
        assert facts["population.server.received_bytes"] == 400 * round(cost.upload_bytes)

    @pytest.mark.parametrize(
        ("numbers", "message"),
        [
            ({"population": 19, "dropout_rate": 0.1}, "fills no cohort"),
            ({"population": 100, "dropout_rate": 1.0}, "dropout_rate"),
            ({"population": 100, "dropout_rate": math.nan}, "dropout_rate"),
            ({"population": 100, "dropout_rate": 0.1, "bad_cohorts": 3}, "from 0 to 2"),
        ],
    )
    def test_refuses_numbers_that_do_not_fit(self, numbers: dict[str, float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            planned(private(), **numbers)

    def test_both_laws_have_the_same_price_for_fine_noise(self) -> None:
        skellam = planned(private(), population=400, dropout_rate=0.1)
        gaussian = planned(replace(private(), noise_law="discrete_gaussian"), population=400, dropout_rate=0.1)
        assert gaussian["population.epsilon_alone"] == pytest.approx(skellam["population.epsilon_alone"], rel=0.02)

    def test_without_privacy_there_is_no_price(self) -> None:
        facts = planned(plain_config(4), population=40, dropout_rate=0.1)
        assert not any("noise" in name or "epsilon" in name for name in facts)


class TestCommand:
    def test_json_has_the_population(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*options("client"), "--population", "1013", "--dropout-rate", "0.1", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert [key for key in SCHEMA["plan"] if key in facts] == list(facts)
        assert facts["population"]["cohorts"] == 50
        assert facts["population"]["client"].keys() == {"cpu_s", "upload_bytes", "download_bytes"}
        assert facts["population"]["server"].keys() == {"cpu_s", "received_bytes", "sent_bytes"}
        assert facts["reasons"].keys() >= {"population.round_failure", "population.server.cpu_s"}

    def test_table_has_it_too(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*options("none"), "--population", "1000", "--dropout-rate", "0.1", "--bad-cohorts", "2"]) == 0
        assert "population.cohorts" in capsys.readouterr().out

    @pytest.mark.parametrize("words", [["--population", "100"], ["--dropout-rate", "0.1"], ["--bad-cohorts", "1"]])
    def test_half_a_question_is_refused(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*options("client"), *words]) == 2
        assert "--population" in capsys.readouterr().err

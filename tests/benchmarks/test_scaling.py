"""The script runs real rounds at the policy's degree, and its slopes are right. Never its times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import secagg
from benchmarks.__main__ import main
from benchmarks.rounds import Round, round_config
from benchmarks.scaling import exponent, measure
from protocols import AggregateReady, Phase
from protocols.graph import Degree, choose_degree

SCHEMA = json.loads((Path(secagg.__file__).parent / "schema.json").read_text())


def small_round() -> Round:
    degree = Degree(degree=5, corrupt_holders=0)
    return Round(round_config(clients=6, dropouts=1, dimension=50, bits=32, degree=degree, suite=2))


def test_prints_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", "--clients", "12,6", "--dimension", "100", "--dropouts", "20", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sorted(facts) == sorted(SCHEMA["benchmarks scaling"])
    assert [(one["clients"], one["degree"], one["dropouts"]) for one in facts["rounds"]] == [(6, 5, 1), (12, 11, 2)]
    assert facts["exact"] is True
    assert all(one["process"]["wall_s"] > 0 for one in facts["rounds"])
    assert all(one["server"]["peak_bytes"] > 4 * 100 for one in facts["rounds"])
    assert facts["exponents"].keys() == {"client", "server", "server_peak"}


def test_the_degree_is_the_policys_unless_it_is_fixed() -> None:
    options = {"dimension": 10, "colluders": 1, "dropouts": 2, "bits": 16, "threads": 2, "suite": 2, "processes": 1}
    chosen = measure(clients=[4, 101], degree=None, **options)["rounds"]
    policy = choose_degree(clients=101, max_colluders=1, max_dropouts=2)
    assert policy.degree < 100
    assert [one["degree"] for one in chosen] == [3, policy.degree]
    fixed = measure(clients=[12, 14], degree=6, **options)["rounds"]
    assert [one["degree"] for one in fixed] == [6, 6]


@pytest.mark.parametrize("slope", [0.5, 1.0, 1.25, 2.0])
def test_exponents_of_exact_powers(slope: float) -> None:
    sizes = [100, 300, 1000, 3000]
    assert exponent(sizes, [7e-3 * n**slope for n in sizes]) == pytest.approx(slope)


def test_a_wrong_sum_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = small_round()
    close_phase = wrong.server.close_phase

    def off_by_one() -> list[object]:
        events = close_phase()
        for event in events:
            if isinstance(event, AggregateReady):
                event.vector[7] += np.uint32(1)
        return list(events)

    monkeypatch.setattr(wrong.server, "close_phase", off_by_one)
    with pytest.raises(ValueError, match="not the plain one"):
        wrong.run()


def test_a_repeated_server_must_get_the_same_sum() -> None:
    timed = small_round()
    timed.run()
    assert timed.repeat_server().cpu.keys() == {"total", "route", "unmask"}
    assert timed.removed_masks() == 5 + 5
    assert timed.server_peak_bytes() > 4 * 50
    timed.inbox[Phase.MASKED_INPUT].entries.reverse()
    timed.repeat_server()  # addition commutes
    timed.inbox[Phase.UNMASK].entries.reverse()
    timed.repeat_server()
    other = small_round()
    other.run()
    timed._result = other._result
    with pytest.raises(ValueError, match="another sum"):
        timed.repeat_server()


@pytest.mark.parametrize("clients", ["10", "10,10", "ten,20"])
def test_growth_needs_two_numbers(clients: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["scaling", "--clients", clients])
    assert stop.value.code == 2
    assert "--clients" in capsys.readouterr().err


def test_too_many_dropouts_for_a_ring_abort(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", "--clients", "40,41", "--dimension", "5", "--degree", "4", "--dropouts", "70"]) == 4
    assert "the round was aborted" in capsys.readouterr().err

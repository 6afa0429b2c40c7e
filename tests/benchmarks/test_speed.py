"""The benchmark's script runs, its sums are exact, its keys are the documented ones. Never its times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import secagg
from benchmarks import speed
from benchmarks.__main__ import main

SCHEMA = json.loads((Path(secagg.__file__).parent / "schema.json").read_text())


def test_prints_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "--clients", "8", "--dimension", "2000", "--dropouts", "25", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sorted(facts) == sorted(SCHEMA["benchmarks speed"])
    assert facts["dropouts"] == 2
    assert facts["exact"] is True
    for group, keys in {
        "client": ("total_s", "mask_s", "floor_s"),
        "server": ("total_s", "unmask_s", "floor_s", "verify_s"),
    }.items():
        assert all(facts[group][key] > 0 for key in keys)
    assert facts["server"]["peak_bytes"] > 4 * 2000
    # One masked vector, and the four small messages beside it.
    assert 4 * 2000 < facts["upload_bytes"] < 4 * 2000 + 8 * 1024


@pytest.mark.parametrize(("bits", "threads", "degree"), [(16, 1, None), (12, 2, None), (32, 2, 6)])
def test_other_shapes_are_exact(bits: int, threads: int, degree: int | None) -> None:
    facts = speed.measure(clients=12, dimension=5000, degree=degree, dropouts=10, bits=bits, threads=threads, suite=2)
    assert facts["exact"] is True
    assert facts["degree"] == (degree or 11)


def test_impossible_rounds_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "--clients", "1", "--dimension", "10"]) == 2
    assert "cohort" in capsys.readouterr().err


@pytest.mark.parametrize(("dropouts", "dropped"), [("0", 0), ("25", 2)])
def test_one_shot_rounds_are_exact(capsys: pytest.CaptureFixture[str], dropouts: str, dropped: int) -> None:
    line = ["speed", "--protocol", "one_shot", "--clients", "8", "--members", "5", "--dimension", "3000"]
    assert main([*line, "--dropouts", dropouts, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sorted(facts) == sorted(SCHEMA["benchmarks speed --protocol one_shot"])
    assert facts["exact"] is True
    assert (facts["dropouts"], facts["members"], facts["threshold"]) == (dropped, 5, 4)
    assert facts["bits"] == 24  # eight clients' errors leave that many of 32
    assert facts["member"]["total_s"] > 0
    for group in ("client", "server"):
        assert all(facts[group][key] > 0 for key in ("total_s", "floor_s"))
    assert facts["server"]["verify_s"] > 0
    # One masked vector with its canaries, and shares: three seeds and two of 4096 bytes.
    assert 0 < facts["upload_bytes"] - 4 * (3000 + 64) - 2 * 4112 < 1024

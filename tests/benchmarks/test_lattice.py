"""The estimate gives the figures that the parameters were chosen by, moves the right way, and says what it is not."""

from __future__ import annotations

import json
from math import sqrt

import pytest

from benchmarks.__main__ import main
from benchmarks.lattice import estimate


@pytest.mark.parametrize(
    ("degree", "bits", "classical", "quantum"),
    [
        (2048, 32, 218, 197),
        (2048, 40, 160, 145),
        (2048, 50, 116, 105),
        (1024, 22, 151, 137),
        (1024, 24, 133, 121),
        (1024, 26, 119, 108),
    ],
)
def test_the_figures_that_the_parameters_were_chosen_by(
    degree: int, bits: int, classical: float, quantum: float
) -> None:
    found = estimate(degree, bits, sqrt(10))
    assert found["classical_bits"] == pytest.approx(classical, abs=2)
    assert found["quantum_bits"] == pytest.approx(quantum, abs=2)


def test_harder_is_more_expensive() -> None:
    base = estimate(1024, 24, 3.0)["block"]
    assert estimate(1024, 24, 4.0)["block"] > base
    assert estimate(1024, 22, 3.0)["block"] > base
    assert estimate(1280, 24, 3.0)["block"] > base


def test_prints_what_it_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lattice", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert "not the lattice estimator" in facts["method"]
    ours = [row for row in facts["rows"] if (row["degree"], row["modulus_bits"]) == (2048, 32)]
    whole, hinted = sorted(ours, key=lambda row: -row["deviation"])
    assert hinted["deviation"] == pytest.approx(whole["deviation"] / sqrt(2))
    assert 128 < hinted["quantum_bits"] < whole["quantum_bits"]

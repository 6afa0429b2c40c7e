"""The published (k, t), recomputed; and ours, which are never weaker."""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from math import comb
from pathlib import Path

import pytest

import secagg
from benchmarks.__main__ import main
from benchmarks.degrees import of, published
from protocols import required_threshold
from protocols.graph import COMPLETE_UP_TO, choose_degree

# Clients, corrupt fraction, dropping fraction, (k, t) semi-honest, (k, t) active; 40 bits of security, 30 of
# correctness. Computed by another program than ours; None: it found no degree up to 2600.
TABLE = json.loads((Path(__file__).parent / "degrees.json").read_text())
SCHEMA = json.loads((Path(secagg.__file__).parent / "schema.json").read_text())


def test_every_entry() -> None:
    """All but one: for 10,000 clients, 20 % corrupt and 30 % dropping the other program found none, and one exists."""
    assert len(TABLE) == 96
    different = []
    for clients, corrupt, dropping, *expected in TABLE:
        for active, pair in zip((False, True), expected, strict=True):
            ours = published(clients, corrupt, dropping, security=40, active=active)
            if ours != (None if pair is None else tuple(pair)):
                different.append((clients, corrupt, dropping, active, ours))
    assert different == [(10_000, 0.2, 0.3, True, (2082, 1319))]


@pytest.mark.parametrize(
    ("clients", "semi_honest", "active"),
    [
        (300, (52, 31), (82, 57)),
        (1000, (72, 43), (138, 98)),
        (10_000, (86, 51), (182, 129)),
        (1_000_000, (96, 56), (210, 148)),
    ],
)
def test_with_80_bits(clients: int, semi_honest: tuple[int, int], active: tuple[int, int]) -> None:
    assert published(clients, 0.1, 0.1, security=80, active=False) == semi_honest
    assert published(clients, 0.1, 0.1, security=80, active=True) == active


def test_the_entry_that_differs_meets_its_conditions_in_whole_numbers() -> None:
    n, k, t = 10_000, 2082, 1319
    corrupt, dropping = of(0.2, n), of(0.3, n)
    everything = comb(n - 1, k)

    def tails(marked: int) -> list[int]:
        """How many of all choices of k hold at least x of the marked, for every x."""
        ways = [comb(marked, x) * comb(n - 1 - marked, k - x) for x in range(min(marked, k) + 1)]
        return list(accumulate(reversed(ways)))[::-1]

    corrupt_neighbours = tails(corrupt)
    allowed = next(x for x, count in enumerate(corrupt_neighbours) if n * count * 2**41 <= everything) - 1
    assert 2 * t > k + allowed
    assert n * tails(dropping)[k - t + 1] * 2**30 <= everything


def test_ours_is_never_weaker() -> None:
    """At 80 bits, neither the degree nor the threshold's excess over half the neighbours is below the published."""
    compared = 0
    for clients, corrupt, dropping, *_ in TABLE:
        colluders, dropouts = of(corrupt, clients), of(dropping, clients)
        if not COMPLETE_UP_TO < clients <= 10_000 or colluders >= clients - dropouts:
            continue
        theirs = published(clients, corrupt, dropping, security=80, active=True)
        chosen = choose_degree(clients=clients, max_colluders=colluders, max_dropouts=dropouts)
        threshold = required_threshold(holders=chosen.degree + 1, corrupt_holders=chosen.corrupt_holders)
        if theirs is not None:
            compared += 1
            assert chosen.degree >= theirs[0]
            assert threshold - chosen.degree / 2 >= theirs[1] - theirs[0] / 2
    assert compared == 35


def test_degrees_grow_with_everything() -> None:
    for one, more in pairwise((0.05, 0.1, 0.2)):
        for active in (False, True):
            low = published(300, one, 0.05, security=40, active=active)
            high = published(300, more, 0.05, security=40, active=active)
            assert low is not None
            assert high is not None
            assert low < high


def test_prints_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["degrees", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sorted(facts) == sorted(SCHEMA["benchmarks degrees"])
    assert len(facts["rows"]) == 96

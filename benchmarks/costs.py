"""What a round costs by its size: slopes fitted to the saved results, for `secagg plan` to predict other sizes.

Rules:

1. Inputs are `results/speed-*.json` and `results/scaling-*.json` of the pairwise protocol on one thread. Nothing is
   measured here.
2. A cost is a sum of terms, each a count that follows from the configuration times a slope that is not negative
   (`secagg.planning.client_terms`, `server_terms`). Terms that count bytes are the same in both suites.
3. Slopes are least squares on relative errors: small rounds weigh as much as large ones.
4. Bytes are exact message sizes (`sizes`), as straight lines in the number of clients and of neighbours.
5. `secagg/costs.json` names the results and the machine. A test holds it to them, and another one predicts results that
   were held out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]

import secagg
from protocols.primitives.keys import SUITES, Suite
from protocols.primitives.packing import packed_bytes
from secagg.planning import Size, client_terms, server_terms

from .harness import RESULTS, say
from .sizes import downloads, uploads

COSTS = Path(secagg.__file__).with_name("costs.json")
GRID = ((100, 32), (100, 98), (300, 108), (1000, 162), (3000, 180), (10_000, 200))  # clients, neighbours
DIGITS = 4  # of a slope

Measured = tuple[Size, float, float]  # with the seconds of a client and of the server


def add_command(commands: Any) -> None:
    """Registers `costs`."""
    parser = commands.add_parser("costs", help="fit secagg/costs.json to results/*.json")
    parser.set_defaults(command=_command)


def _command(_options: argparse.Namespace) -> int:
    COSTS.write_text(render(load(RESULTS)))
    say(f"wrote {COSTS}")
    return 0


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The results that are used, by the names of their files."""
    found = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    schemas = ("benchmarks/speed/1", "benchmarks/scaling/1")
    return {name: facts for name, facts in found.items() if facts["schema"] in schemas and facts["threads"] == 1}


def render(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The file's text."""
    rounds = [one for facts in results.values() for one in measured(facts)]
    machines = sorted(
        {(facts["environment"]["processor"], facts["environment"]["python"]) for facts in results.values()}
    )
    facts = {
        "schema": "secagg/costs/1",
        "made_by": "python -m benchmarks costs",
        "from": sorted(results),
        "machines": [{"processor": processor, "python": python} for processor, python in machines],
        "seconds": fit(rounds),
        "bytes": {str(number): message_bytes(suite) for number, suite in SUITES.items()},
    }
    return json.dumps(facts, indent=2) + "\n"


def measured(facts: Mapping[str, Any]) -> Iterable[Measured]:
    """The rounds of one result."""
    for one in facts.get("rounds", [facts]):
        size = Size(
            clients=one["clients"],
            degree=one["degree"],
            dropouts=one["dropouts"],
            vector_bytes=packed_bytes(facts["dimension"], facts["bits"]),
            suite=facts.get("suite", 1),
        )
        yield size, one["client"]["total_s"], one["server"]["total_s"]


def fit(rounds: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Slopes by term, for a client and for the server."""
    return {
        "client": _slopes([(client_terms(size), seconds) for size, seconds, _ in rounds]),
        "server": _slopes([(server_terms(size), seconds) for size, _, seconds in rounds]),
    }


def _slopes(rows: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    names = sorted({name for terms, _ in rows for name in terms})
    relative = np.array([[terms.get(name, 0.0) / seconds for name in names] for terms, seconds in rows])
    scale = np.linalg.norm(relative, axis=0)
    slopes, _ = nnls(relative / scale, np.ones(len(rows)))
    return {name: float(f"{slope:.{DIGITS}g}") for name, slope in zip(names, slopes / scale, strict=True)}


def message_bytes(suite: Suite) -> dict[str, dict[str, float]]:
    """Straight lines through exact sizes; the vector is not among them."""

    def line(count: Callable[[int, int], int]) -> dict[str, float]:
        rows = np.array([(1, clients, degree) for clients, degree in GRID], dtype=float)
        sizes = np.array([count(clients, degree) for clients, degree in GRID], dtype=float)
        slopes, *_ = np.linalg.lstsq(rows / sizes[:, None], np.ones(len(sizes)))
        names = ("fixed", "client", "neighbour")
        return {name: round(float(slope), 1) + 0.0 for name, slope in zip(names, slopes, strict=True)}  # no -0.0

    return {
        "upload": line(lambda n, k: sum(uploads(clients=n, degree=k, vector_bytes=0, suite=suite).values())),
        "download": line(lambda n, k: sum(downloads(clients=n, degree=k, suite=suite).values())),
    }

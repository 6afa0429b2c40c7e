"""Degrees and thresholds of the ring: the published conditions, and what they lack against a server that cuts the ring.

Rules:

1. The published conditions (Bell et al., CCS 2020, section 3) bound two chances over a random ring: that a client has
   too many corrupt neighbours, and that those who *happen* to drop out disconnect the ring.
2. A server that cheats chooses who counts as dropped. `protocols.graph` therefore asks for more: its threshold makes
   the clients at both ends of a cut refuse. Its degrees are larger; this table shows by how much.
3. Tails are exact hypergeometric sums in logarithms; corrupt and dropped clients are the fractions, rounded up.
"""

from __future__ import annotations

import argparse
from math import ceil, log
from typing import Any

import numpy as np

from protocols import required_threshold
from protocols.graph import CORRECTNESS, MAX_DEGREE, _log_factorials, _log_tails, choose_degree

from .harness import add_output_options, publish

CLIENTS = (10, 30, 100, 300, 1000, 10_000, 100_000, 1_000_000)
FRACTIONS = (0.05, 0.1, 0.2, 0.33)
DROPOUTS = (0.05, 0.1, 0.3)


def add_command(commands: Any) -> None:
    """Registers `degrees`."""
    parser = commands.add_parser("degrees", help="degree and threshold: published conditions beside ours")
    parser.add_argument("--security", type=int, default=40, help="bits, of the published conditions")
    add_output_options(parser)
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    rows = [
        _row(clients, corrupt, dropping, options.security)
        for corrupt in FRACTIONS
        for dropping in DROPOUTS
        for clients in CLIENTS
    ]
    publish("degrees", {"security": options.security, "correctness": CORRECTNESS, "rows": rows}, options)
    return 0


def _row(clients: int, corrupt: float, dropping: float, security: int) -> dict[str, Any]:
    colluders, dropouts = of(corrupt, clients), of(dropping, clients)
    ours = None
    if colluders < clients - dropouts and clients <= 10_000:  # larger cohorts take minutes
        chosen = choose_degree(clients=clients, max_colluders=colluders, max_dropouts=dropouts)
        ours = (chosen.degree, required_threshold(holders=chosen.degree + 1, corrupt_holders=chosen.corrupt_holders))
    return {
        "clients": clients,
        "corrupt": corrupt,
        "dropping": dropping,
        "semi_honest": published(clients, corrupt, dropping, security=security, active=False),
        "active": published(clients, corrupt, dropping, security=security, active=True),
        "ours_80_bits": ours,
    }


def of(fraction: float, clients: int) -> int:
    """A fraction of the clients, rounded up."""
    return ceil(round(fraction * clients, 9))


def published(clients: int, corrupt: float, dropping: float, *, security: int, active: bool) -> tuple[int, int] | None:
    """The smallest degree and its threshold that meet the published conditions.

    Args:
        clients: n.
        corrupt: fraction of clients that collude with the server.
        dropping: fraction of clients that drop out.
        security: bits; each of the two security conditions fails with probability below 2^-(security + 1).
        active: whether no two disjoint groups of honest neighbours may both reach the threshold.

    Returns:
        (k, t), t out of k neighbours; None if no degree up to 2600 will do.
    """
    colluders, dropouts = of(corrupt, clients), of(dropping, clients)
    gone, rare = colluders + dropouts, -(security + 1) * log(2)
    logs = _log_factorials(clients)
    for degree in range(2, min(clients - 1, MAX_DEGREE) + 1):
        if degree % 2 and degree != clients - 1:
            continue
        if degree < clients - 1 and degree <= gone:
            pairs = log(clients) + log((clients - degree - 1) / 2)
            if pairs + logs[gone] + logs[clients - degree] - logs[clients] - logs[gone - degree] >= rare:
                continue
        enough = np.flatnonzero(log(clients) + _log_tails(clients - 1, colluders, degree) <= rare)
        if not enough.size:
            continue
        threshold = int(enough[0])
        if active:
            threshold = max(threshold, (degree + threshold - 1) // 2 + 1)
        if threshold > degree:
            continue
        too_few = _log_tails(clients - 1, dropouts, degree)[degree - threshold + 1]
        if log(clients) + too_few <= -CORRECTNESS * log(2):
            return degree, threshold
    return None

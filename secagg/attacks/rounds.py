"""Attacks over several rounds: the difference of two sums, and one client's share of many.

Rules:

1. Differencing: the same updates, once with and once without a client, differ by that client's update. Clients refuse
   the second round *on the same model*; a server that changes the model by one rounding step is not refused, so the
   rule is hygiene. Only noise, drawn afresh in each round, bounds what the difference tells.
2. Disaggregation: who took part in which round is public. If a client's updates have a part that stays the same, the
   sums of many rounds are linear equations for these parts, and least squares solves them.

Sources: Pasquini et al. 2022 (arXiv 2111.07380) for differencing by sub-cohorts; Lam et al. 2021 ("Gradient
Disaggregation: Breaking Privacy in Federated Learning by Reconstructing the User Participant Matrix", arXiv
2106.06089).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dp import FloatMatrix, FloatVector, RandomBytes

from .views import ServerView


def difference(views: tuple[ServerView, ServerView], *, rand: RandomBytes | None = None) -> FloatVector:
    """The updates of those who are in the first sum and not in the second: float64[p].

    Args:
        views: two rounds; the survivors of the second are among those of the first.
        rand: not used; every attack takes it.

    Raises:
        ValueError: the survivors are not nested.
    """
    larger, smaller = views
    if not larger.survivors > smaller.survivors:
        raise ValueError("the second round's survivors must be some of the first round's, and fewer")
    return larger.vector - smaller.vector


def disaggregate(
    views: Sequence[ServerView], clients: Sequence[int], *, rand: RandomBytes | None = None
) -> FloatMatrix:
    """The constant part of each client's updates, from who took part.

    Args:
        views: rounds over changing survivors; more rounds than clients, or the least-norm answer is given.
        clients: the clients in question.
        rand: not used; every attack takes it.

    Returns:
        float64[len(clients), p].

    Raises:
        ValueError: there are no rounds.
    """
    if not views:
        raise ValueError("there are no rounds to look at")
    participation = np.array([[client in view.survivors for client in clients] for view in views], dtype=np.float64)
    sums = np.stack([view.vector for view in views])
    parts: FloatMatrix = np.linalg.lstsq(participation, sums, rcond=None)[0].astype(np.float64)
    return parts

"""Membership in one sum: which of two candidates did this client use?

Rules:

1. A passive server, an honest model, one round. The adversary knows both candidates' updates and, from public records,
   the mean and covariance of everybody else's. Then the likelihood ratio of two Gaussian laws is the best test.
2. Against an exact sum it works for dozens of clients: masking is a crowd to hide in, not a guarantee.
3. Noise of standard deviation s bounds *every* test: two updates of norm at most c move the sum by at most 2c, so that
   no test has an area under its curve above Phi(2c / s / sqrt 2). `auc_bound` is that number; a measurement above it
   means that the noise is not what the configuration says.

Sources: Ngo et al. 2024 ("Secure Aggregation is Not Private Against Membership Inference Attacks", arXiv 2403.17775);
the bound: Dong, Roth and Su 2022 ("Gaussian Differential Privacy"), equation for the trade-off curve G_mu.

Example::

    crowd = Crowd.of(public_updates)
    scores = membership(view, MembershipKnowledge(first=a, second=b, crowd=crowd))  # float64[k]
    believed = scores > 0  # the adversary's answer for each pair: the first
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dp import FloatMatrix, FloatVector, RandomBytes

from .views import SumView

_LEAST_VARIANCE = 1e-9  # of the largest eigenvalue, where public records do not vary: finite arithmetic


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crowd:
    """What other clients' updates look like.

    Attributes:
        mean: float64[p].
        variances: float64[r], along each direction.
        directions: float64[r, p], orthonormal.
    """

    mean: FloatVector
    variances: FloatVector
    directions: FloatMatrix

    @staticmethod
    def of(public: FloatMatrix) -> Crowd:
        """From updates on public records, float64[m, p], clipped as clients clip.

        Raises:
            ValueError: fewer than two.
        """
        if public.ndim != 2 or len(public) < 2:
            raise ValueError(f"a crowd needs at least two public updates, got shape {public.shape}")
        mean = public.mean(axis=0)
        _, singular, directions = np.linalg.svd(public - mean, full_matrices=False)
        return Crowd(mean=mean, variances=singular**2 / len(public), directions=directions)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MembershipKnowledge:
    """Pairs of candidates, and the crowd around them.

    Attributes:
        first: float64[k, p], one candidate's update of each pair, clipped as clients clip.
        second: float64[k, p], the other's.
        crowd: the other clients.

    Raises:
        ValueError: shapes disagree.
    """

    first: FloatMatrix
    second: FloatMatrix
    crowd: Crowd

    def __post_init__(self) -> None:
        if self.first.shape != self.second.shape or self.first.ndim != 2:
            raise ValueError(f"candidates of shapes {self.first.shape} and {self.second.shape} are no pairs")
        if self.crowd.mean.shape != self.first.shape[1:]:
            raise ValueError(f"a crowd of {self.crowd.mean.shape} coordinates does not fit {self.first.shape}")


def membership(view: SumView, knowledge: MembershipKnowledge, *, rand: RandomBytes | None = None) -> FloatVector:
    """Log likelihood ratio, for each pair, that its first candidate is in the sum and not its second.

    Args:
        view: a sum over `view.clients` clients with noise of `view.noise_stddev`.
        knowledge: the candidates and the crowd.
        rand: not used; every attack takes it.

    Returns:
        float64[k]; above 0 means the first.

    Raises:
        ValueError: the view has another length than the candidates.
    """
    if view.vector.shape != knowledge.first.shape[1:]:
        raise ValueError(f"the view has shape {view.vector.shape}, candidates {knowledge.first.shape[1:]}")
    others, crowd = view.clients - 1, knowledge.crowd
    spread = others * crowd.variances
    floor = view.noise_stddev**2 + _LEAST_VARIANCE * max(float(crowd.variances.max()), 1e-300)
    difference = knowledge.first - knowledge.second
    centred = view.vector - others * crowd.mean - (knowledge.first + knowledge.second) / 2
    # (spread on the basis + floor everywhere)^-1, applied without the p x p matrix.
    along, across = difference @ crowd.directions.T, centred @ crowd.directions.T
    inside = np.sum(along * across / (spread + floor), axis=1)
    outside = (np.sum(difference * centred, axis=1) - np.sum(along * across, axis=1)) / floor
    scores: FloatVector = inside + outside
    return scores


def auc_bound(sensitivity: float, noise_stddev: float) -> float:
    """Largest area under any test's curve between sums that differ by `sensitivity` in L2, under Gaussian noise."""
    if noise_stddev <= 0:
        return 1.0
    # Phi(mu / sqrt 2) with mu = sensitivity / noise_stddev.
    return 0.5 * (1 + math.erf(sensitivity / noise_stddev / 2))

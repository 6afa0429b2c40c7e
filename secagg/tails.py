"""Tails of the two distributions that planning needs, as logarithms, so that 2^-80 is a number like any other.

Both are upper tails, P[X >= least]; `log_any` is the union bound over several such events.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

LOG2 = math.log(2)


def log_binomial_tail(least: int, *, trials: int, rate: float) -> float:
    """Log P[X >= least], X the number of successes among `trials` that succeed with `rate` each, independently."""
    if least <= 0:
        return 0.0
    if least > trials or rate <= 0:
        return -math.inf
    if rate >= 1:
        return 0.0
    return _log_sum(
        _log_choose(trials, k) + k * math.log(rate) + (trials - k) * math.log1p(-rate) for k in range(least, trials + 1)
    )


def log_hypergeometric_tail(least: int, *, population: int, marked: int, draws: int) -> float:
    """Log P[X >= least], X the number of marked members among `draws` out of `population`, without replacement."""
    if least <= max(0, draws - (population - marked)):
        return 0.0
    if least > min(draws, marked):
        return -math.inf
    return _log_sum(
        _log_choose(marked, k) + _log_choose(population - marked, draws - k) - _log_choose(population, draws)
        for k in range(least, min(draws, marked) + 1)
    )


def log_any(count: int, log_probability: float) -> float:
    """An upper bound on the log-probability that any of `count` events happens, each at most that likely."""
    return min(0.0, math.log(count) + log_probability)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_sum(logs: Iterable[float]) -> float:
    """The log of the sum of exponentials, at most 0."""
    terms = list(logs)
    largest = max(terms)
    return min(0.0, largest + math.log(math.fsum(math.exp(term - largest) for term in terms)))

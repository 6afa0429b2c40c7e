"""Lower bounds on epsilon from what an attacker gets right: statistics alone.

A bound says: had the mechanism been (epsilon, delta)-private with a smaller epsilon, an attacker would be this good
with probability at most 1 - confidence. A bound above the claim disproves the claim; a bound below it proves nothing.

Rules:

- *One run* (`epsilon_one_run`, `epsilon_one_run_fdp`): m canaries, each included by a fair coin of its own, all in one
  run; the attacker may abstain. No independence of the canaries' scores is assumed.
- *Independent trials* (`epsilon_clopper_pearson`, `epsilon_gdp`): as many runs as there are scores, or canaries whose
  scores are independent. Tighter, and wrong where that does not hold.
- `epsilon_gdp` and `epsilon_one_run_fdp` speak of mechanisms whose trade-off is that of a Gaussian; a sum with Skellam
  or discrete Gaussian noise of thousands of steps is one, to four digits.
- Whoever tries several thresholds, numbers of guesses or estimators and takes the best has to pay for each try:
  `audit` divides the error probability by their number. Thresholds are fixed before scores are seen.

Sources: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, Theorem 3.1; Mahloujifar,
Melis, Chaudhuri, "Auditing f-Differential Privacy in One Run", 2024, Algorithm 3; Jagielski, Ullman, Oprea, "Auditing
Differentially Private Machine Learning", NeurIPS 2020 (Clopper-Pearson); Nasr et al., "Tight Auditing of Differentially
Private Machine Learning", USENIX Security 2023 (the Gaussian trade-off).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
_NORMAL = NormalDist()
_LARGEST_EPSILON = 64.0
_TOLERANCE = 1e-9  # of every bisection; bounds are rounded towards zero


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditBounds:
    """What the scores of one audit prove, all bounds together at one confidence.

    Attributes:
        bounds: the lower bound on epsilon of each estimator.
        delta: failure probability of the guarantee that was tested.
        confidence: probability with which *all* bounds hold.
        canaries: how many scores there were.
        auroc: area under the attacker's ROC curve.
    """

    bounds: dict[str, float]
    delta: float
    confidence: float
    canaries: int
    auroc: float

    @property
    def epsilon(self) -> float:
        """The largest of the bounds."""
        return max(self.bounds.values())


def audit(
    included: Scores,
    excluded: Scores,
    *,
    delta: float,
    thresholds: Sequence[float],
    independent: bool,
    confidence: float = 0.95,
) -> AuditBounds:
    """All bounds on the same scores, corrected for being several.

    Args:
        included: scores of the canaries that were in; higher means "in" to the attacker.
        excluded: scores of those that were not. Which one was in was decided by a fair coin for each.
        delta: failure probability of the guarantee under test, in [0, 1).
        thresholds: where the attacker says "in"; chosen without these scores.
        independent: whether scores are independent of each other; without it only one-run bounds are given.
        confidence: probability with which all bounds hold, in (0, 1).

    Raises:
        ValueError: no scores on one side, a score that is nan, no threshold, or a probability out of range.
    """
    if not (len(included) and len(excluded) and len(thresholds)):
        raise ValueError(
            f"needs scores on both sides and a threshold, got {len(included)}, {len(excluded)} and {len(thresholds)}"
        )
    if np.isnan(included).any() or np.isnan(excluded).any():
        raise ValueError("a score is nan")
    _check_probability("confidence", confidence)
    canaries = len(included) + len(excluded)
    guess_counts = sorted({max(1, canaries // part) for part in (1, 2, 4, 10, 30)})
    tries = 2 * len(guess_counts) + (2 * len(thresholds) if independent else 0)
    level = 1 - (1 - confidence) / tries
    bounds = {"one run": 0.0, "one run, f-DP": 0.0}
    for guesses in guess_counts:
        correct = correct_guesses(included, excluded, guesses=guesses)
        for name, bound in (("one run", epsilon_one_run), ("one run, f-DP", epsilon_one_run_fdp)):
            value = bound(correct=correct, guesses=guesses, canaries=canaries, delta=delta, confidence=level)
            bounds[name] = max(bounds[name], value)
    if independent:
        bounds |= {"Clopper-Pearson": 0.0, "Gaussian": 0.0}
        for threshold in thresholds:
            counts = {
                "true_positives": int((included >= threshold).sum()),
                "included": len(included),
                "false_positives": int((excluded >= threshold).sum()),
                "excluded": len(excluded),
            }
            for name, estimate in (("Clopper-Pearson", epsilon_clopper_pearson), ("Gaussian", epsilon_gdp)):
                bounds[name] = max(bounds[name], estimate(**counts, delta=delta, confidence=level))
    return AuditBounds(
        bounds=bounds, delta=delta, confidence=confidence, canaries=canaries, auroc=auroc(included, excluded)
    )


def epsilon_one_run(*, correct: int, guesses: int, canaries: int, delta: float, confidence: float) -> float:
    """Steinke, Nasr, Jagielski 2023, Theorem 3.1: the largest epsilon at which so many correct guesses are too many.

    Args:
        correct: guesses that were right.
        guesses: canaries about which the attacker said anything; their number was fixed beforehand.
        canaries: all canaries, each included by a fair coin.
        delta: failure probability of the guarantee, in [0, 1).
        confidence: probability with which the bound holds.

    Returns:
        A lower bound on epsilon, >= 0.

    Raises:
        ValueError: counts are not 0 <= correct <= guesses <= canaries, or a probability is out of range.
    """
    _check_guesses(correct, guesses, canaries, delta, confidence)

    def unlikely(epsilon: float) -> bool:
        accuracy = 1 / (1 + math.exp(-epsilon))
        tail = binomial_tails(guesses, accuracy)
        chance = float(tail[correct])
        if correct and delta:
            steps = np.arange(1, correct + 1)
            chance += 2 * canaries * delta * float(((tail[correct - steps] - tail[correct]) / steps).max())
        return chance <= 1 - confidence

    return _largest(unlikely)


def epsilon_one_run_fdp(*, correct: int, guesses: int, canaries: int, delta: float, confidence: float) -> float:
    """Mahloujifar, Melis, Chaudhuri 2024, Algorithm 3, for Gaussian trade-offs. Arguments as there."""
    _check_guesses(correct, guesses, canaries, delta, confidence)
    error = 1 - confidence

    def unlikely(mu: float) -> bool:
        right, wrong = error * correct / canaries, error * (guesses - correct) / canaries
        for place in range(correct - 1, -1, -1):
            blown = _NORMAL.cdf(_NORMAL.inv_cdf(right) - mu) if 0 < right < 1 else right
            if blown <= wrong:
                break  # nothing changes any more
            right = min(right + place / (guesses - place) * (blown - wrong), 1.0)
            wrong = blown
        return right + wrong > guesses / canaries

    return epsilon_of_gaussian(_largest(unlikely), delta)


def epsilon_clopper_pearson(
    *, true_positives: int, included: int, false_positives: int, excluded: int, delta: float, confidence: float
) -> float:
    """The better of ln((TPR - delta) / FPR) and ln((TNR - delta) / FNR), rates at their Clopper-Pearson bounds.

    Args:
        true_positives: included canaries that the attacker called "in".
        included: independent canaries that were in.
        false_positives: excluded canaries that the attacker called "in".
        excluded: independent canaries that were not.
        delta: failure probability of the guarantee, in [0, 1).
        confidence: probability with which the bound holds.

    Returns:
        A lower bound on epsilon, >= 0.

    Raises:
        ValueError: a count exceeds its total, or a probability is out of range.
    """
    low, high = _rates(true_positives, included, false_positives, excluded, delta, confidence)
    best = 0.0
    for power, error in ((low[0], high[1]), (1 - high[1], 1 - low[0])):
        if power > delta:
            best = max(best, math.log((power - delta) / error))
    return best


def epsilon_gdp(
    *, true_positives: int, included: int, false_positives: int, excluded: int, delta: float, confidence: float
) -> float:
    """Nasr et al. 2023: the Gaussian trade-off through the Clopper-Pearson rates. As `epsilon_clopper_pearson`."""
    low, high = _rates(true_positives, included, false_positives, excluded, delta, confidence)
    if low[0] in (0.0, 1.0) or high[1] in (0.0, 1.0):
        return 0.0
    mu = _NORMAL.inv_cdf(1 - high[1]) - _NORMAL.inv_cdf(1 - low[0])
    return epsilon_of_gaussian(max(mu, 0.0), delta)


def epsilon_of_gaussian(mu: float, delta: float) -> float:
    """Epsilon at `delta` of a Gaussian mechanism with sensitivity over noise `mu` (Balle, Wang 2018, Theorem 8)."""
    if mu <= 0:
        return 0.0

    def missed(epsilon: float) -> bool:
        spent = _NORMAL.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + _log_normal_cdf(-mu / 2 - epsilon / mu))
        return spent > delta

    return _largest(missed, highest=max(_LARGEST_EPSILON, mu * (mu / 2 + 40)))


def correct_guesses(included: Scores, excluded: Scores, *, guesses: int) -> int:
    """How many of `guesses` are right if the highest half of them are called "in" and the lowest "out"."""
    scores = np.concatenate([included, excluded])
    truth = np.arange(len(scores)) < len(included)
    # Among equal scores, order tells against the attacker: included ones stand where "out" is called, and vice versa.
    order = np.lexsort((~truth, scores))
    lowest, highest = guesses // 2, guesses - guesses // 2
    return int(truth[order[len(order) - highest :]].sum() + (~truth[order[:lowest]]).sum())


def auroc(included: Scores, excluded: Scores) -> float:
    """Probability that an included canary scores above an excluded one; ties count half."""
    _, ranks, counts = np.unique(np.concatenate([included, excluded]), return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    above = float(middle[ranks[: len(included)]].sum()) - len(included) * (len(included) + 1) / 2
    return above / (len(included) * len(excluded))


def true_positive_rate(included: Scores, excluded: Scores, *, false_positive_rate: float) -> float:
    """Share of included canaries found at the threshold that gives at most that rate of false alarms."""
    allowed = math.floor(false_positive_rate * len(excluded) + 1e-9)
    if allowed >= len(excluded):
        return 1.0
    threshold = np.sort(excluded)[len(excluded) - 1 - allowed]
    return float((included > threshold).mean())


def clopper_pearson(successes: int, trials: int, *, confidence: float) -> tuple[float, float]:
    """One-sided lower and one-sided upper bound on a probability, each at `confidence`."""
    error = 1 - confidence
    low = 0.0 if successes == 0 else _root(lambda p: _tail(trials, p, successes) > error)
    high = 1.0 if successes == trials else 1 - _root(lambda p: _tail(trials, p, trials - successes) > error)
    return low, high


def binomial_tails(trials: int, probability: float) -> NDArray[np.float64]:
    """P[Binomial(trials, probability) >= k] for k = 0, ..., trials."""
    counts = np.arange(trials + 1)
    if probability in (0, 1):
        return np.asarray((counts <= trials * probability).astype(np.float64))
    logs = _log_binomials(trials) + counts * math.log(probability) + counts[::-1] * math.log1p(-probability)
    return np.asarray(np.minimum(np.cumsum(np.exp(logs)[::-1])[::-1], 1.0))


@functools.lru_cache(maxsize=8)
def _log_binomials(trials: int) -> NDArray[np.float64]:
    factorials = np.array([math.lgamma(count + 1) for count in range(trials + 1)])
    return np.asarray(factorials[-1] - factorials - factorials[::-1])


def _tail(trials: int, probability: float, least: int) -> float:
    return float(binomial_tails(trials, probability)[least])


def _root(above: Callable[[float], bool]) -> float:
    """Where a condition that turns true does so, in [0, 1]; the false side of the last step."""
    low, high = 0.0, 1.0
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (low, middle) if above(middle) else (middle, high)
    return low


def _largest(holds: Callable[[float], bool], *, highest: float = _LARGEST_EPSILON) -> float:
    """The largest value in [0, highest] up to which a condition holds, from below; 0 if it holds nowhere."""
    if not holds(0.0):
        return 0.0
    low, high = 0.0, highest
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _rates(
    true_positives: int, included: int, false_positives: int, excluded: int, delta: float, confidence: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """(lower bound on TPR, lower bound on FPR), (upper bounds): each pair used holds at `confidence`."""
    for count, total in ((true_positives, included), (false_positives, excluded)):
        if not 0 <= count <= total or total < 1:
            raise ValueError(f"a count must lie in [0, {total}] with a total of at least 1, got {count}")
    _check_delta(delta)
    _check_probability("confidence", confidence)
    each = 1 - (1 - confidence) / 2  # a bound uses one rate of either side
    power = clopper_pearson(true_positives, included, confidence=each)
    error = clopper_pearson(false_positives, excluded, confidence=each)
    return (power[0], error[0]), (power[1], error[1])


def _log_normal_cdf(x: float) -> float:
    """Logarithm of Phi(x), also far in the lower tail."""
    if x > -30:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    # Mills' ratio, an upper bound there: epsilon comes out smaller, never larger.
    return -x * x / 2 - math.log(-x) - math.log(2 * math.pi) / 2


def _check_guesses(correct: int, guesses: int, canaries: int, delta: float, confidence: float) -> None:
    if not 0 <= correct <= guesses <= canaries or guesses < 1:
        raise ValueError(f"counts must be 0 <= {correct} <= {guesses} <= {canaries}, with a guess")
    _check_delta(delta)
    _check_probability("confidence", confidence)


def _check_delta(delta: float) -> None:
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be in [0, 1), got {delta!r}")


def _check_probability(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1), got {value!r}")

"""How often a coordinate of a sum leaves its ring, and the finest scale at which that stays rare.

Rules:

- Wrapping costs accuracy, never privacy: the ring sum is computed from the noised integer sum.
- After the random rotation of `rotation`, no coordinate of the signal dominates: the sum of `units` vectors of norm B
  is sub-Gaussian per coordinate with variance proxy units²·B²/N, even if all point the same way. Stochastic rounding
  adds units/4 (each error is bounded in an interval of length 1: Hoeffding's lemma), and noise adds its own law.
- `wrap_probability` is a Chernoff bound on the whole: it holds for every input that was not chosen against the signs.

Source of `finest_scale`: Kairouz, Liu, Steinke, ICML 2021 (arXiv 2102.06387), with their heuristic ρ/d replaced by the
proven 1/N; Skellam's moments: Agarwal, Kairouz, Liu, NeurIPS 2021 (arXiv 2110.04995).
"""

import math

from .errors import CapacityError

_BISECTIONS = 80


def finest_scale(
    *, limit: float, units: int, clip_norm: float, noise_stddev: float, spread: int, deviations: float
) -> float:
    """The largest integer steps per unit of the update at which `limit` is `deviations` standard deviations away.

    s = sqrt(4·limit² - units·k²) / (2k·sqrt(units²·clip_norm²/N + noise_stddev²)); with a ring of b bits and its limit
    2^(b-1) this is the published choice for n = units, N = d/ρ and noise_stddev² = n·σ_loc².

    Args:
        limit: largest magnitude of a coordinate of the sum.
        units: clipped and rounded units in the sum.
        clip_norm: their L2 norm, in units of the update.
        noise_stddev: standard deviation per coordinate of all noise in the sum, in units of the update.
        spread: N, the coordinates over which the rotation spreads.
        deviations: k.

    Raises:
        CapacityError: rounding alone, of standard deviation sqrt(units)/2, needs a larger limit; names it.
    """
    room = 4 * limit**2 - units * deviations**2
    if room <= 0:
        needed = math.floor(math.sqrt(units) * deviations / 2) + 1
        raise CapacityError(
            f"a sum of {units} rounded units needs coordinates up to {needed} at {deviations:.1f} deviations, "
            f"the limit is {limit:g}"
        )
    return math.sqrt(room) / (2 * deviations * math.sqrt(units**2 * clip_norm**2 / spread + noise_stddev**2))


def deviations_for(probability: float) -> float:
    """The k that a sub-Gaussian coordinate passes in magnitude with this probability at most: sqrt(2·ln(2/p))."""
    return math.sqrt(2 * math.log(2 / probability))


def wrap_probability(*, limit: float, proxy: float, noise_variance: float) -> float:
    """Bound on P(|coordinate| >= limit) for a sub-Gaussian part plus Skellam noise.

    2·exp(min over t of proxy·t²/2 + noise_variance·(cosh t - 1) - t·limit), Chernoff's bound with the exact moments of
    Skellam noise; at most 1.

    Args:
        limit: magnitude that must not be reached, > 0.
        proxy: variance proxy of signal and rounding, >= 0.
        noise_variance: variance of the noise, >= 0.
    """
    if proxy == noise_variance == 0:
        return 0.0
    # The exponent is convex in t, and its slope, proxy·t + noise_variance·sinh t - limit, grows.
    low, high = 0.0, 1.0
    while proxy * high + noise_variance * math.sinh(high) < limit:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if proxy * middle + noise_variance * math.sinh(middle) < limit else (low, middle)
    # cosh t - 1 as 2 sinh²(t/2): exact where t is small. Any t gives a bound.
    exponent = proxy * low**2 / 2 + 2 * noise_variance * math.sinh(low / 2) ** 2 - low * limit
    return min(1.0, 2 * math.exp(exponent))

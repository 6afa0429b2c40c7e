"""Bound the L2 norm of an update, by a fixed norm or by one that follows the updates.

Rules:

- Anything but a finite float vector is refused with `UnsafeUpdateError`; nothing is repaired silently.
- Clipping here is float arithmetic: it makes updates small, but the privacy guarantee rests on the exact integer check
  of `encoding`.
- An adaptive clip norm asks each client for one more number, whether its update was short enough to stay as it is: +h
  for yes, -h for no. It is one more coordinate of the vector that is scaled, rounded and checked as one: leaving a
  client out moves update and indicator together by at most int_bound in L2, (s·||update||)² + (s·h)² <= int_bound²
  for the scale s of both, and nothing is charged beside the vector.
- The noise is fixed in integer steps and int_bound is fixed too, so epsilon does not depend on the clip norm at all: it
  may be announced by anyone, and a lie about it costs accuracy only.

Source of the adaptive norm: Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive
Clipping", NeurIPS 2021 (arXiv 1905.03871), Algorithm 1. Their noise multiplier of the update, (z⁻² - (2σ_b)⁻²)^(-1/2),
is z over sqrt(1 - f²), the share of int_bound that an indicator of f = s·h/int_bound leaves: σ_b, the deviation of the
noised count, is z/(2f).
"""

import math
from dataclasses import dataclass

import numpy as np

from .errors import UnsafeUpdateError
from .samplers import FloatVector

_FARTHEST = 100.0  # in logarithms of the norm: far beyond any use, far within floats


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveClipping:
    """A clip norm that moves from round to round towards a quantile of the clients' update norms.

    Given as `ClientLevel(clip_norm=AdaptiveClipping(initial=...))`. Epsilon is the same as for a fixed norm.

    Attributes:
        initial: clip norm of the first round, in units of the update. Finite, > 0.
        target_quantile: fraction of updates that shall stay unclipped, in (0, 1).
        learning_rate: how fast the logarithm of the norm moves, in (0, 1].

    Raises:
        ValueError: a value is outside its bound; the message names both.
    """

    initial: float
    target_quantile: float = 0.5
    learning_rate: float = 0.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.initial) and self.initial > 0):
            raise ValueError(f"initial must be finite and > 0, got {self.initial!r}")
        if not 0 < self.target_quantile < 1:
            raise ValueError(f"target_quantile must be in (0, 1), got {self.target_quantile!r}")
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate must be in (0, 1], got {self.learning_rate!r}")

    def following(self, clip_norm: float, *, unclipped: float) -> float:
        """The norm of the next round: clip_norm · exp(-learning_rate · (unclipped - target_quantile)).

        Args:
            clip_norm: this round's.
            unclipped: noised fraction of updates that were not clipped; taken as 0 or 1 where noise led beyond.
        """
        return clip_norm * math.exp(-self.learning_rate * (min(max(unclipped, 0.0), 1.0) - self.target_quantile))

    def bounds(self, rounds: int) -> tuple[float, float]:
        """The least and the largest norm that `rounds` honest rounds can lead to, a little wider against rounding."""
        step = self.learning_rate * max(self.target_quantile, 1 - self.target_quantile)
        factor = math.exp(min(step * rounds, _FARTHEST)) * (1 + 1e-9)
        return self.initial / factor, self.initial * factor


def with_indicator(update: FloatVector, *, clip_norm: float, indicator: float) -> FloatVector:
    """Clip an update and append whether it was short enough to stay, as +indicator or -indicator.

    Args:
        update: float64[d] or float32[d].
        clip_norm: Largest norm of the update.
        indicator: Magnitude of the last coordinate, positive and finite.

    Returns:
        float64[d + 1] of norm at most sqrt(clip_norm² + indicator²), up to float64 rounding.

    Raises:
        UnsafeUpdateError: The update is not a finite float vector.
        ValueError: `clip_norm` or `indicator` is not positive and finite.
    """
    if not (indicator > 0 and math.isfinite(indicator)):
        raise ValueError(f"indicator must be positive and finite, got {indicator}")
    clipped = clip_by_l2(update, clip_norm=clip_norm)
    return np.append(clipped, indicator if np.array_equal(clipped, update) else -indicator)


def require_floats(values: object, *, ndim: int) -> None:
    """Refuse everything but a NumPy array of float64 or float32 with `ndim` dimensions.

    Raises:
        UnsafeUpdateError: Wrong type, dtype or number of dimensions. Integers and booleans are refused because they are
            most often labels or masks passed by mistake.
    """
    if not isinstance(values, np.ndarray):
        raise UnsafeUpdateError(f"an update must be a NumPy array, got {type(values).__name__}")
    if values.dtype not in (np.float64, np.float32):
        raise UnsafeUpdateError(f"an update must be float64 or float32, got {values.dtype}")
    if values.ndim != ndim:
        raise UnsafeUpdateError(f"expected an array of {ndim} dimension(s), got shape {values.shape}")


def clip_by_l2(update: FloatVector, *, clip_norm: float) -> FloatVector:
    """Scale an update down to the L2 norm `clip_norm`, up to float64 rounding; leave a shorter one as it is.

    Entries are divided by the largest before they are squared, so neither 1e300 overflows nor 1e-300 vanishes.

    | update                     | result                         |
    |----------------------------|--------------------------------|
    | norm <= clip_norm          | the same values                |
    | norm > clip_norm           | same direction, norm clip_norm |
    | all zeros, or of length 0  | the same values                |
    | any nan or infinity        | UnsafeUpdateError              |

    Args:
        update: float64[d]; float32[d] is widened.
        clip_norm: Largest norm allowed, positive and finite, in the units of the update.

    Returns:
        A new float64[d].

    Raises:
        UnsafeUpdateError: The update is not a finite float vector.
        ValueError: `clip_norm` is not positive and finite.
    """
    if not (clip_norm > 0 and math.isfinite(clip_norm)):
        raise ValueError(f"clip_norm must be positive and finite, got {clip_norm}")
    require_floats(update, ndim=1)
    values = np.asarray(update)
    peak = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    if not math.isfinite(peak):
        raise UnsafeUpdateError("the update contains nan or infinity")
    clipped = values.astype(np.float64)
    if peak == 0.0:
        return clipped
    unit = clipped / peak
    norm = math.sqrt(np.dot(unit, unit))
    if peak <= clip_norm / norm:
        return clipped
    unit *= clip_norm / norm
    return unit

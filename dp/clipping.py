"""Bound the L2 norm of an update.

Rules:

- Anything but a finite float vector is refused with `UnsafeUpdateError`; nothing is repaired silently.
- Clipping here is float arithmetic: it makes updates small, but the privacy guarantee rests on the exact integer check
  of `encoding`.
"""

import math

import numpy as np

from .errors import UnsafeUpdateError
from .samplers import FloatVector


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

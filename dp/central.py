"""Central Gaussian noise, to compare with: the server sees the exact sum and adds the noise itself.

Rules:

- For comparison only. No configuration selects it, and its events say "gaussian".
- The noise is continuous and drawn in floats. The guarantee is the textbook's, for real numbers: what floats leak
  (Mironov 2012; Casacuberta et al. 2022) is not covered.
- Sensitivity is `clip_norm`: whoever sums must have clipped every unit to it.

Source: Dwork, Roth, "The Algorithmic Foundations of Differential Privacy", 2014, Appendix A; Box, Muller 1958.

Example:
    >>> from dp.accounting import epsilon
    >>> central = CentralGaussian(noise_multiplier=5.0, clip_norm=1.0)
    >>> round(epsilon([central.event()], delta=1e-6), 2)
    0.9
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .accounting import GaussianEvent
from .clipping import require_floats
from .samplers import FloatVector, RandomBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralGaussian:
    """Noise that a trusted server adds to an exact sum.

    Attributes:
        noise_multiplier: z, the noise's standard deviation over `clip_norm`; in [2^-32, 2^32].
        clip_norm: L2 bound of one unit of the sum. Finite, > 0.
        sampling_rate: rate in [2^-64, 1] of a Poisson draw of units that only the trusted server knows.

    Raises:
        ValueError: a value is outside its bound; the message names both.
    """

    noise_multiplier: float
    clip_norm: float
    sampling_rate: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ValueError(f"clip_norm must be finite and > 0, got {self.clip_norm!r}")
        for name in ("noise_multiplier", "sampling_rate"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)!r}")
        self.event()

    def release(self, total: FloatVector, *, rand: RandomBytes) -> FloatVector:
        """The exact sum plus noise of standard deviation `noise_multiplier` x `clip_norm` per coordinate.

        Args:
            total: float64[d], a sum of units of L2 norm at most `clip_norm`; left unchanged.
            rand: secure bytes; about 8 are consumed per coordinate.

        Returns:
            float64[d].

        Raises:
            UnsafeUpdateError: `total` is not a float vector.
        """
        require_floats(total, ndim=1)
        return total + self.noise_multiplier * self.clip_norm * _standard_normal(len(total), rand=rand)

    def event(self) -> GaussianEvent:
        """What one release costs against those who see it but not the exact sum."""
        return GaussianEvent(
            noise_multiplier=Fraction(self.noise_multiplier), sampling_rate=Fraction(self.sampling_rate)
        )

    def statement(self) -> str:
        """What this mechanism does not hide, in one paragraph."""
        return (
            "Central Gaussian noise, for comparison only. The server sees the exact sum and adds noise of standard "
            f"deviation {self.noise_multiplier * self.clip_norm:g} per coordinate to what it publishes. Epsilon holds "
            "against those who see published sums alone; against the server, and whoever breaks into it, it is "
            "infinite. The noise is a float: what floats reveal beyond real numbers is not accounted."
        )


def _standard_normal(length: int, *, rand: RandomBytes) -> FloatVector:
    """float64[length] by Box and Muller, from 53-bit uniforms in (0, 1)."""
    pairs = (length + 1) // 2
    words = np.frombuffer(rand(16 * pairs), dtype="<u8", count=2 * pairs)
    radius, angle = ((words >> np.uint64(11)) + 0.5).reshape(2, pairs) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(radius)), 2 * np.pi * angle
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:length]

"""How close reconstructions are to the truth: the evaluation's side, which no attack sees."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dp import FloatVector

Images = NDArray[np.float64]

_WORST_PSNR, _MAX_PSNR = 0.0, 100.0


def best_psnr(truths: Images, guesses: Images) -> FloatVector:
    """For each truth, the PSNR in dB of the guess closest to it: the choice favours the attack.

    Args:
        truths: float64[k, ...] in [0, 1].
        guesses: float64[m, ...], of the same picture shape; m may be 0.

    Returns:
        float64[k], at most 100 dB, 0 dB where there is no guess.
    """
    if not len(guesses):
        return np.full(len(truths), _WORST_PSNR)
    first, second = truths.reshape(len(truths), -1), guesses.reshape(len(guesses), -1)
    error = np.array([np.square(second - truth).mean(axis=1).min() for truth in first])
    scores: FloatVector = np.minimum(-10 * np.log10(np.maximum(error, 1e-30)), _MAX_PSNR)
    return scores


def closest(truth: FloatVector, guesses: Images) -> FloatVector:
    """The guess that is closest to a truth, clipped to [0, 1]; mid-grey where there is none."""
    if not len(guesses):
        return np.full_like(truth, 0.5)
    error = np.square(guesses.reshape(len(guesses), -1) - truth.ravel()).mean(axis=1)
    nearest: FloatVector = np.clip(guesses[int(error.argmin())].reshape(truth.shape), 0, 1)
    return nearest


def roc(members: FloatVector, others: FloatVector) -> tuple[tuple[float, float], ...]:
    """(share of non-members, share of members) above each threshold, from the strictest on."""
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    return tuple((float((others >= t).mean()), float((members >= t).mean())) for t in thresholds)


def auc(members: FloatVector, others: FloatVector) -> float:
    """Chance that a random member scores above a random non-member, ties counted half (Mann-Whitney)."""
    below = np.searchsorted(np.sort(others), members, side="left")
    up_to = np.searchsorted(np.sort(others), members, side="right")
    return float((below + up_to).sum() / 2 / (len(members) * len(others)))


def true_positives(members: FloatVector, others: FloatVector, *, at: float) -> float:
    """Share of members above the threshold that a share `at` of the non-members passes (rounded down: conservative)."""
    allowed = int(at * len(others))
    threshold = np.sort(others)[len(others) - 1 - allowed]
    return float((members > threshold).mean())


def auc_of_epsilon(epsilon: float, delta: float) -> float:
    """Largest area under the curve of any test between neighbours under (epsilon, delta)-differential privacy.

    Source: the trade-off curve f(a) = max(0, 1 - delta - e^epsilon a, e^-epsilon (1 - delta - a)), Dong, Roth and Su
    2022, equation (5); the area under 1 - f, rounded up.
    """
    if not math.isfinite(epsilon):
        return 1.0
    alpha = np.linspace(0, 1, 100_001)
    growth = math.exp(min(epsilon, 700.0))
    error = np.maximum(0, np.maximum(1 - delta - growth * alpha, (1 - delta - alpha) / growth))
    # 1 - f increases: the right end of each step is above the curve.
    return float(np.minimum(1.0, np.mean(1 - error[1:])))


def cosine(first: FloatVector, second: FloatVector) -> float:
    """Cosine of the angle between two vectors; 0 if one is zero."""
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / length if length else 0.0

"""What an attack amounted to: a number, the guess that needs no view, and what was claimed beforehand.

Rules:

1. The attack never sees the truth; only the outcome compares with it. Where a choice is left (which reconstruction
   belongs to whom), it favours the attack.
2. `prior` is the same metric for the best guess from public data alone. A value below it is no success, whatever it is.
3. The expectation is stated with the experiment, not after it. `HOLDS` means that a defence claims to stop this attack
   at this threshold: if the attack succeeds nevertheless, the defence is broken and so says the verdict. `LEAKS` means
   that nothing claims to stop it; if it fails, the attack is too weak to show anything. `OPEN` claims nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.floating]


class Expectation(StrEnum):
    """What is claimed of a defence before the attack runs."""

    LEAKS = "leaks"
    HOLDS = "holds"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One attack, measured.

    Attributes:
        attack: its name.
        metric: what is measured; larger is worse for the clients.
        value: the measurement.
        prior: the same metric for the best guess without any view.
        threshold: above it the attack has succeeded; never below the prior.
        expectation: what was claimed beforehand.
        note: conditions and further figures, in words.
        details: further figures, in plain types.
        images: captions and pictures to look at, for a report; the first is the truth.
        curve: ROC of the attack: (false alarms, found), for a report.

    Raises:
        ValueError: the threshold is below the prior.
    """

    attack: str
    metric: str
    value: float
    prior: float
    threshold: float
    expectation: Expectation
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    images: tuple[tuple[str, Image], ...] = field(default=(), compare=False, repr=False)
    curve: tuple[tuple[float, float], ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.threshold >= self.prior:
            raise ValueError(f"threshold = {self.threshold} is below the prior {self.prior}: guessing would succeed")

    @property
    def succeeded(self) -> bool:
        """Whether the attack did better than the threshold."""
        return self.value > self.threshold

    @property
    def verdict(self) -> str:
        """`leaks` or `holds`; `broken` if a defence should have held, `weak attack` if the attack should have won."""
        if self.succeeded:
            return "broken" if self.expectation is Expectation.HOLDS else "leaks"
        return "weak attack" if self.expectation is Expectation.LEAKS else "holds"

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "attack": self.attack,
            "metric": self.metric,
            "value": self.value,
            "prior": self.prior,
            "threshold": self.threshold,
            "expectation": self.expectation.value,
            "verdict": self.verdict,
            "note": self.note,
            "details": self.details,
        }

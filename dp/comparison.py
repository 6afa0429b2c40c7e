"""The same releases read by other accountants: dp-accounting and Opacus, at the Gaussian of equal noise multiplier.

Rules:

- Ours is the only row that may be claimed of Skellam or discrete Gaussian noise. The others know continuous Gaussian
  noise alone; each event stands there as the Gaussian of equal variance, sensitivity and sampling rate.
- Nothing here is needed to run a round. Both libraries are optional and imported when asked; a row without its library
  says how to get it, a row whose library has no answer says why.

Sources: dp-accounting (Google); Opacus (Meta), with the PRV accountant of Gopi, Lee, Wutschitz, "Numerical Composition
of Differential Privacy", NeurIPS 2021.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .accounting import Events, PrivacyEvent, counted, epsilon

Counts = Mapping[PrivacyEvent, int]

LARGEST_EXACT_EPSILON = 100
"""Loss distributions are not computed beyond it: their grids grow with epsilon, into minutes and gigabytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One accountant's reading.

    Attributes:
        accountant: library and method.
        epsilon: what it says; None without an answer.
        note: why it differs from ours, or why there is no answer.
    """

    accountant: str
    epsilon: float | None
    note: str

    def __str__(self) -> str:
        value = "-" if self.epsilon is None else f"{self.epsilon:.4f}"
        return f"{self.accountant:<18} {value:>10}  {self.note}"


def compare(events: Events, *, delta: float) -> list[ComparisonRow]:
    """Epsilon of releasing all `events`, by our accountant and by those of dp-accounting and Opacus.

    A plan of T equal rounds is `{mechanism.event(survivors=min_survivors): T}`.

    Args:
        events: releases, or a mapping from a release to how often it was made.
        delta: failure probability, in (0, 1).

    Returns:
        Five rows: ours, dp-accounting RDP and PLD, Opacus RDP and PRV.

    Raises:
        ValueError: `delta` is not in (0, 1), or a count is negative.
    """
    counts = {event: count for event, count in counted(events).items() if count}
    ours = epsilon(counts, delta=delta)
    rows = [
        ComparisonRow(
            accountant="secagg RDP", epsilon=ours, note="the exact law at integer orders: the one that may be claimed"
        )
    ]
    for accountant, library, read, note in (
        ("dp-accounting RDP", "dp-accounting", _dp_accounting_rdp, "Gaussian of equal noise, real orders too"),
        ("dp-accounting PLD", "dp-accounting", _dp_accounting_pld, "Gaussian of equal noise, its whole loss: tight"),
        ("Opacus RDP", "opacus", _opacus_rdp, "Gaussian of equal noise, real orders up to 63"),
        ("Opacus PRV", "opacus", _opacus_prv, "Gaussian of equal noise, its whole loss, plus 0.01 for the grid"),
    ):
        rows.append(_row(accountant, library, read, note, counts, delta, ours))
    return rows


def _row(
    accountant: str,
    library: str,
    read: Callable[[Counts, float], float],
    note: str,
    counts: Counts,
    delta: float,
    ours: float,
) -> ComparisonRow:
    """One reading by another library, which may be absent or have no answer."""
    missing = importlib.util.find_spec(library.replace("-", "_")) is None
    value: float | None = None
    if missing:
        note = f"not installed: pip install {library}"
    elif accountant.endswith(("PLD", "PRV")) and ours > LARGEST_EXACT_EPSILON:
        note = f"not computed beyond epsilon {LARGEST_EXACT_EPSILON}"
    elif not counts:
        value = 0.0
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the best order is the last one of a grid, and the like
                value = float(read(counts, delta))
        except (ValueError, ArithmeticError, RuntimeError) as error:
            note = f"no answer: {error}"
        if value is not None and not math.isfinite(value):
            value, note = None, f"no answer: {value}"
    return ComparisonRow(accountant=accountant, epsilon=value, note=note)


def _dp_accounting_rdp(counts: Counts, delta: float) -> float:
    from dp_accounting.rdp import RdpAccountant

    return _by_dp_accounting(RdpAccountant(), counts, delta)


def _dp_accounting_pld(counts: Counts, delta: float) -> float:
    from dp_accounting.pld import PLDAccountant

    return _by_dp_accounting(PLDAccountant(), counts, delta)


def _by_dp_accounting(accountant: object, counts: Counts, delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

    for event, count in counts.items():
        gaussian, rate = GaussianDpEvent(event.gaussian_multiplier), float(event.sampling_rate)
        accountant.compose(gaussian if rate == 1 else PoissonSampledDpEvent(rate, gaussian), count)  # type: ignore[attr-defined]
    return float(accountant.get_epsilon(delta))  # type: ignore[attr-defined]


def _opacus_rdp(counts: Counts, delta: float) -> float:
    from opacus.accountants import RDPAccountant

    return _by_opacus(RDPAccountant(), counts, delta)


def _opacus_prv(counts: Counts, delta: float) -> float:
    from opacus.accountants import PRVAccountant

    return _by_opacus(PRVAccountant(), counts, delta)


def _by_opacus(accountant: object, counts: Counts, delta: float) -> float:
    accountant.history = [  # type: ignore[attr-defined]  # what `step` would append one by one
        (event.gaussian_multiplier, float(event.sampling_rate), count) for event, count in counts.items()
    ]
    return float(accountant.get_epsilon(delta))  # type: ignore[attr-defined]

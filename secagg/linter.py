"""Looks at a model before training it: is this a model, or a trap?

Rules:

1. The server chooses the model, and a planted one reads data through any mask and any binding. A client that is asked
   to train should look at what it gets: `refuse_planted` as `Client(..., inspect=refuse_planted)` refuses the round.
2. Each check names something that published attacks plant and that neither initialisation nor training produces:

   | finding | planted by |
   |---|---|
   | `parallel rows`: many rows of a layer point the same way | imprint |
   | `rank one`: one direction holds nearly all of a layer | imprint with noise on top |
   | `constant units`: units that no input in range can switch | model inconsistency, dead or always-on units |
   | `rare units`: most units of a layer are silent for most inputs | trap weights |
   | `rescaled layer`: weights far larger or smaller than any initialisation | gradient amplification, imprint bins |
   | `not finite` | anything |

3. A layer is an array of two or more axes (output first) with the array of the same name ending in `bias`, if there is
   one. Nothing is executed. A client may show the linter some of its own records: then rare units of layers that take
   such records are counted, not inferred from how biases follow weights. Refusing then tells one bit about the records.

Blind spots, stated because a linter invites false trust: it cannot see an attack that stays within the statistics of an
ordinary model. Traps for few records (unless it is shown some), decoders hidden in several layers (SEER, arXiv
2306.03013), a classification head alone (Maui, arXiv 2509.11451), transformers made to memorise tokens (Decepticons)
and a model that merely is overfit pass. So does an honest model whose exact sum can be inverted. Only noise bounds what
a sum reveals; the linter makes the cheap attacks visible.

Example:
    >>> import numpy as np
    >>> planted = {"1.weight": np.full((8, 64), 1 / 64), "1.bias": -np.linspace(0, 1, 8)}
    >>> [finding.kind for finding in lint(planted)]
    ['parallel rows', 'rank one']
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from protocols import PolicyRefusal

from .layout import Arrays

if TYPE_CHECKING:
    from torch import nn

_FEWEST_INPUTS = 8  # rows with fewer inputs are parallel by chance
_FEWEST_UNITS = 4
_PARALLEL = 0.999  # cosine of two rows of one direction
_PARALLEL_SHARE = 0.1  # of a layer's rows with a twin
_ONE_DIRECTION = 0.98  # of a layer's energy
_CONSTANT_SHARE = 0.1  # of a layer's units
_RARE_SHARE = 0.8  # of a layer's units
_RARELY = 0.1  # of the records
_FEWEST_TRAPS = 32  # units, for biases that follow weights by chance
_SCALE = 30.0  # around 1 / sqrt(inputs), where every usual initialisation starts and training stays


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something in a model that training does not produce.

    Attributes:
        layer: name of the array.
        kind: one of those in the table above.
        detail: the measurement beside its bound.
    """

    layer: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.kind}, {self.detail}"


def lint(
    model: Arrays | nn.Module,
    *,
    input_range: tuple[float, float] = (-10.0, 10.0),
    records: NDArray[np.floating] | None = None,
) -> list[Finding]:
    """What is suspicious about a model.

    Args:
        model: named arrays as they arrive from the server, or a module.
        input_range: what one input of any layer can be.
        records: float[n, ...], the client's own inputs as the first layer gets them, 10 or more to be of use.

    Returns:
        Findings in the order of the layers; an empty list is no proof of anything.

    Raises:
        ValueError: the range is empty.
    """
    low, high = input_range
    if not low < high:
        raise ValueError(f"input_range ({low}, {high}) is empty")
    arrays = model if isinstance(model, Mapping) else _arrays_of(model)
    shown = None if records is None else np.asarray(records, dtype=np.float64).reshape(len(records), -1)
    findings = []
    for name, array in arrays.items():
        values = np.asarray(array, dtype=np.float64)
        if not np.isfinite(values).all():
            findings.append(Finding(layer=name, kind="not finite", detail=f"{np.sum(~np.isfinite(values))} entries"))
        elif values.ndim >= 2 and "emb" not in name.lower():
            rows = values.reshape(len(values), -1)
            bias = arrays.get(f"{name.removesuffix('weight')}bias")
            usable = bias is not None and np.shape(bias) == (len(rows),) and np.isfinite(bias).all()
            offsets = np.asarray(bias, dtype=np.float64) if usable else np.zeros(len(rows))
            findings += [
                Finding(layer=name, kind=kind, detail=detail)
                for kind, detail in _examine(rows, offsets, low, high, shown)
            ]
    return findings


def refuse_planted(model: Arrays, *, records: NDArray[np.floating] | None = None) -> None:
    """Refuses a model with findings; for `Client(..., inspect=refuse_planted)`.

    With records of the client's own: `inspect=partial(refuse_planted, records=records)`.

    Raises:
        PolicyRefusal: names all findings.
    """
    findings = lint(model, records=records)
    if findings:
        raise PolicyRefusal("this client does not train a planted model: " + "; ".join(map(str, findings)))


def _examine(
    rows: NDArray[np.float64],
    bias: NDArray[np.float64],
    low: float,
    high: float,
    records: NDArray[np.float64] | None,
) -> Iterator[tuple[str, str]]:
    """All checks of one layer: float64[units, inputs] and float64[units]."""
    lengths = np.linalg.norm(rows, axis=1)
    live = lengths > 0  # zeros are how residual branches and adapters start
    units, inputs = int(live.sum()), rows.shape[1]
    if units < _FEWEST_UNITS or inputs < _FEWEST_INPUTS:
        return
    rows, bias, lengths = rows[live], bias[live], lengths[live]

    typical = float(np.sqrt(np.mean(rows**2) * inputs))
    if not 1 / _SCALE <= typical <= _SCALE:
        yield "rescaled layer", f"root mean square weight {typical:.3g} / sqrt(inputs), bounds 1/{_SCALE:g}, {_SCALE:g}"

    twins = _share_with_twin(rows / lengths[:, None])
    if twins > _PARALLEL_SHARE:
        yield "parallel rows", f"{100 * twins:.0f} % of {units} rows have a twin, bound {100 * _PARALLEL_SHARE:.0f} %"

    energy = np.linalg.svd(rows, compute_uv=False)[0] ** 2 / np.sum(rows**2)
    if energy > _ONE_DIRECTION:
        yield "rank one", f"one direction holds {100 * energy:.1f} % of the energy, bound {100 * _ONE_DIRECTION:.0f} %"

    positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    constant = ((positive * high + negative * low + bias <= 0) | (positive * low + negative * high + bias >= 0)).mean()
    if constant > _CONSTANT_SHARE:
        yield (
            "constant units",
            (
                f"{100 * constant:.0f} % of {units} units are dead or always on for inputs in [{low:g}, {high:g}], "
                f"bound {100 * _CONSTANT_SHARE:.0f} %"
            ),
        )

    if records is not None and records.shape[1] == inputs:
        rare = float(((records @ rows.T + bias > 0).mean(axis=0) < _RARELY).mean())
    else:
        rare = _trapped(rows, bias, lengths) if units >= _FEWEST_TRAPS else 0.0
    if rare > _RARE_SHARE and constant <= _CONSTANT_SHARE:
        yield (
            "rare units",
            (f"{100 * rare:.0f} % of {units} units are silent for most inputs, bound {100 * _RARE_SHARE:.0f} %"),
        )


def _trapped(rows: NDArray[np.float64], bias: NDArray[np.float64], lengths: NDArray[np.float64]) -> float:
    """Share of units whose bias cancels the response to *some* common input level, and a margin more.

    Biases fitted to public data are about `-(level sum(w) + reach |w|)`; ordinary ones know nothing of the weights.
    """
    design = np.stack([rows.sum(axis=1), lengths], axis=1)
    fit = np.linalg.lstsq(design, -bias, rcond=None)[0]
    unexplained = np.sum((design @ fit + bias) ** 2) / max(float(np.sum(bias**2)), 1e-300)
    strong = np.abs(bias) > 0.05 * lengths
    return float(strong.mean()) if unexplained < 0.2 and fit[1] > 0 else 0.0


def _share_with_twin(directions: NDArray[np.float64]) -> float:
    """Share of unit rows that are parallel to another one; in blocks, so that wide layers fit in memory."""
    block, twins = 1024, 0
    for start in range(0, len(directions), block):
        cosines = np.abs(directions[start : start + block] @ directions.T)
        own = np.arange(len(cosines))
        cosines[own, start + own] = 0
        twins += int((cosines.max(axis=1) > _PARALLEL).sum())
    return twins / len(directions)


def _arrays_of(model: nn.Module) -> Arrays:
    """All parameters, frozen ones too: a trap need not be trained."""
    return {name: parameter.detach().cpu().numpy() for name, parameter in model.named_parameters()}

"""The matrix: every attack against every defence, each cell measured on a real round and compared with what is claimed.

Rules:

1. A cell is an `Outcome`. Where masking alone does not stop an attack the cell says `leaks` and stays in the table.
2. A defence that should hold and does not is `broken`; that is a finding, and the only thing that fails a run.
3. Attacks on an honest model do not care whether the model is bound and looked at: their last column is that of
   `noised`. Cells that make no sense (nothing to disaggregate where nothing is summed) are missing.
4. Nothing is seeded but where said: keys, noise, data and attacks differ from run to run, and so do figures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .._siblings import VERSION

try:
    import torch
except ImportError as missing:
    raise ImportError("the red team needs PyTorch: pip install 'secagg[torch,data]'") from missing

from . import active, passive, published
from .active import Cells, Ground
from .arena import DEFENCES, DELTA, EPSILON
from .outcome import Outcome
from .pictures import digit_pictures, load_pictures

EXPERIMENTS: Mapping[str, Callable[[Ground], Cells]] = {
    "inversion": passive.single_inversion,
    "sum-inversion": passive.sum_inversion,
    "imprint": active.imprint_dense,
    "imprint-sparse": active.imprint_sparse,
    "trap": active.trap_weights,
    "inconsistency": active.model_inconsistency,
    "linear": passive.exact_linear,
    "membership": passive.membership_in_a_sum,
    "rounds": passive.several_rounds,
    "labels": passive.label_histogram,
    "words": passive.bag_of_words,
    "published": published.published_model,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """All outcomes of a run.

    Attributes:
        cells: by attack, by defence.
        pictures: the data that pictures came from.
        smoke: whether sizes were small.
        seconds: how long each experiment took.
    """

    cells: Mapping[str, Mapping[str, Outcome]]
    pictures: str
    smoke: bool
    seconds: Mapping[str, float]

    @property
    def broken(self) -> tuple[tuple[str, str], ...]:
        """Attack and defence of every cell in which a defence should have held and did not."""
        return self._with_verdict("broken")

    @property
    def weak(self) -> tuple[tuple[str, str], ...]:
        """Attack and defence of every cell in which the attack should have succeeded and did not."""
        return self._with_verdict("weak attack")

    def to_dict(self) -> dict[str, Any]:
        """The documented keys of `secagg attack --json`."""
        return {
            "pictures": self.pictures,
            "smoke": self.smoke,
            "epsilon": EPSILON,
            "delta": DELTA,
            "defences": list(DEFENCES),
            "cells": {
                attack: {defence: outcome.to_dict() for defence, outcome in row.items()}
                for attack, row in self.cells.items()
            },
            "broken": [list(cell) for cell in self.broken],
            "weak": [list(cell) for cell in self.weak],
            "seconds": dict(self.seconds),
            "environment": {"torch": torch.__version__, "numpy": np.__version__},
        }

    def _with_verdict(self, verdict: str) -> tuple[tuple[str, str], ...]:
        return tuple(
            (attack, defence)
            for attack, row in self.cells.items()
            for defence, outcome in row.items()
            if outcome.verdict == verdict
        )


def run_matrix(
    names: Iterable[str] = tuple(EXPERIMENTS),
    *,
    smoke: bool,
    step: Callable[[str], None] = lambda _: None,
) -> Matrix:
    """Runs experiments, in one thread: the models are small.

    Args:
        names: which of `EXPERIMENTS`.
        smoke: small and quick, on digits.
        step: told after every experiment.

    Raises:
        ValueError: an experiment has no such name.
        ImportError: a package that carries the data is missing.
    """
    chosen = list(names)
    unknown = sorted(set(chosen) - set(EXPERIMENTS))
    if unknown:
        raise ValueError(f"no attack is called {', '.join(unknown)}: choose from {', '.join(EXPERIMENTS)}")
    ground = Ground(pictures=digit_pictures() if smoke else load_pictures(), smoke=smoke)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cells: dict[str, dict[str, Outcome]] = {}
    seconds: dict[str, float] = {}
    try:
        for name in chosen:
            began = time.perf_counter()
            experiment = EXPERIMENTS[name]
            honest = experiment.__module__ != active.__name__
            for defence, outcome in experiment(ground):
                row = cells.setdefault(outcome.attack, {})
                row[defence] = outcome
                if honest and defence == "noised":
                    row["bound"] = replace(outcome, note=f"as noised: the model is honest. {outcome.note}")
            seconds[name] = time.perf_counter() - began
            step(name)
    finally:
        torch.set_num_threads(threads)
    return Matrix(cells=cells, pictures=ground.pictures.name, smoke=smoke, seconds=seconds)


def write_json(matrix: Matrix, folder: Path) -> Path:
    """Writes `report.json` into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    facts = {"schema": "secagg/attack/1", "version": VERSION, **matrix.to_dict()}
    path.write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n")
    return path

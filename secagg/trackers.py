"""Callbacks that write what a training run tells, for people and for the tools that they watch.

1. `JsonLines`: a file, one JSON object for each moment.
2. `Scalars`: anything with `add_scalar(tag, value, step)`, such as TensorBoard's `SummaryWriter`.
3. `Metrics`: anything with `log_metrics(metrics, step=...)`, such as the module `mlflow`.
4. `Prometheus`: keeps the newest numbers; `text()` is their exposition, for whatever server the caller has.

None imports the tool it writes to. Keys are those of `RoundRecord.metrics` and `AbortRecord.metrics`; no client is
named.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dp import BudgetExceededError, PrivacyError
from protocols import Phase, ProtocolError

from .callbacks import AbortRecord, Callback, RoundRecord


class ScalarWriter(Protocol):
    """TensorBoard's way to take a number."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> object:
        """Notes one number."""


class MetricsLogger(Protocol):
    """MLflow's way to take numbers."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> object:
        """Notes numbers by name."""


class JsonLines(Callback):
    """Appends to a file; a resumed run goes on where the file ends. Infinite numbers become the text "inf".

    Args:
        path: of the file; its folder exists.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def on_round_end(self, record: RoundRecord) -> None:
        """One line with the round's metrics."""
        self._write({"event": "round_end", "round": record.round, **record.metrics()})

    def on_abort(self, error: ProtocolError | PrivacyError, record: AbortRecord) -> None:
        """One line with what is known of the round, and why it ended."""
        phase = None if record.phase is None else record.phase.value
        facts = {"event": "abort", "round": record.round, "phase": phase, "error": type(error).__name__}
        self._write({**facts, **record.metrics()})

    def on_budget_refused(self, error: BudgetExceededError) -> None:
        """One line with the refusal."""
        self._write({"event": "budget_refused", "message": str(error)})

    def _write(self, facts: Mapping[str, Any]) -> None:
        finite = {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in facts.items()
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")


class Scalars(Callback):
    """Gives each metric to a writer such as TensorBoard's `SummaryWriter`, at the number of its round."""

    def __init__(self, writer: ScalarWriter) -> None:
        self._writer = writer

    def on_round_end(self, record: RoundRecord) -> None:
        """The round's metrics."""
        self._add(record)

    def on_abort(self, error: ProtocolError | PrivacyError, record: AbortRecord) -> None:
        """What is known of the round."""
        self._add(record)

    def _add(self, record: RoundRecord | AbortRecord) -> None:
        for name, value in record.metrics().items():
            self._writer.add_scalar(name, value, record.round)


class Metrics(Callback):
    """Gives all metrics of a round at once to a logger such as the module `mlflow`."""

    def __init__(self, logger: MetricsLogger) -> None:
        self._logger = logger

    def on_round_end(self, record: RoundRecord) -> None:
        """The round's metrics."""
        self._logger.log_metrics(record.metrics(), step=record.round)

    def on_abort(self, error: ProtocolError | PrivacyError, record: AbortRecord) -> None:
        """What is known of the round."""
        self._logger.log_metrics(record.metrics(), step=record.round)


class Prometheus(Callback):
    """The newest numbers in Prometheus' text exposition format 0.0.4; serve `text()` as text/plain; version=0.0.4.

    Args:
        budget: the value of the label `budget`.
        epsilon_limit: of that budget; infinity without privacy.
    """

    def __init__(self, *, budget: str, epsilon_limit: float) -> None:
        self._label = _labels(budget=budget)
        self._limit = epsilon_limit
        self._rounds: Counter[str] = Counter()
        self._record: RoundRecord | AbortRecord | None = None
        self._survivors: int | None = None

    def on_round_end(self, record: RoundRecord) -> None:
        """Keeps the record."""
        self._rounds["finished"] += 1
        self._record, self._survivors = record, record.survivors

    def on_abort(self, error: ProtocolError | PrivacyError, record: AbortRecord) -> None:
        """Keeps the record."""
        self._rounds["aborted"] += 1
        self._record = record

    def on_budget_refused(self, error: BudgetExceededError) -> None:
        """Counts the refusal."""
        self._rounds["refused"] += 1

    def text(self) -> str:
        """All metrics, each with its help and its type; what is unknown before the first round is left out."""
        record = self._record
        families: list[tuple[str, str, str, list[tuple[str, float]]]] = [
            (
                "secagg_rounds_total", "counter", "Rounds of this process by how they ended.",
                [(_labels(outcome=outcome), self._rounds[outcome]) for outcome in ("finished", "aborted", "refused")],
            ),
            ("secagg_epsilon_limit", "gauge", "Epsilon that the budget allows.", [(self._label, self._limit)]),
        ]  # fmt: skip
        if self._survivors is not None:
            help_text = "Clients in the newest sum."
            families.append(("secagg_survivors", "gauge", help_text, [("", self._survivors)]))
        if record is not None:
            help_text = "Epsilon spent against the server and the assumed colluders."
            families += [
                ("secagg_epsilon_spent", "gauge", help_text, [(self._label, record.epsilon)]),
                ("secagg_missing", "gauge", "Clients that stayed silent in the newest round.", _phases(record.missing)),
                ("secagg_phase_seconds", "gauge", "Duration of the newest round's phases.", _phases(record.seconds)),
                (
                    "secagg_bytes_up",
                    "gauge",
                    "Bytes of the newest round's messages.",
                    [("", record.bytes_up)],
                ),
            ]
        return "".join(
            f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n"
            + "".join(f"{name}{labels} {_number(value)}\n" for labels, value in samples)
            for name, kind, help_text, samples in families
        )


def _phases(values: Mapping[Phase, float]) -> list[tuple[str, float]]:
    return [(_labels(phase=phase.value), value) for phase, value in values.items()]


def _labels(**labels: str) -> str:
    escaped = {
        name: value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"


def _number(value: float) -> str:
    """As Go's ParseFloat reads it."""
    return "+Inf" if value == math.inf else repr(value)

"""Flower as the engine, this library as the privacy layer: strategies and train functions stay as they are.

`SecAggMod` goes into the `ClientApp`, `SecAggGrid` wraps the grid in the `ServerApp`; `docs/flower.md` is the guide.
"""

from __future__ import annotations

try:
    import flwr as _flwr  # noqa: F401
except ImportError as error:
    raise ImportError("Flower apps need Flower: pip install 'secagg[flower]'") from error

from .agreement import Agreement
from .grid import Failure, SecAggGrid, UnsupportedStrategyError, simulate_nodes
from .mod import SecAggMod
from .node import Node, enrol, read_roster, write_agreement, write_roster

__all__ = [
    "Agreement", "Failure", "Node", "SecAggGrid", "SecAggMod", "UnsupportedStrategyError", "enrol", "read_roster",
    "simulate_nodes", "write_agreement", "write_roster",
]  # fmt: skip

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

with warnings.catch_warnings():  # Flower's own imports, of packages that deprecate each other
    warnings.simplefilter("ignore")
    import flwr.serverapp.strategy
    import flwr.simulation  # noqa: F401


@pytest.fixture
def nodes() -> Iterator[Path]:
    """A directory for nodes, in memory where there is such a place: every message makes several durable writes."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory) / "nodes"

"""What all benchmarks share: CPU time, the machine they ran on, and how results are printed."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, TypeVar

T = TypeVar("T")


class Stopwatch:
    """Adds up the CPU time (all threads of this process) and the wall time of named parts."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Adds the time of the block to `part`."""
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self.cpu[part] = self.cpu.get(part, 0.0) + time.process_time() - cpu
            self.wall[part] = self.wall.get(part, 0.0) + time.perf_counter() - wall


def best_cpu_seconds(call: Callable[[], T], *, repeat: int) -> float:
    """The least CPU time of `repeat` calls, after one that warms up."""
    call()
    times = []
    for _ in range(repeat):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return min(times)


def environment() -> dict[str, Any]:
    """Machine and versions, for the record."""
    packages = ("numpy", "cryptography", "msgspec")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in packages},
    }


def show(command: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints one JSON object, or one line for each number."""
    if as_json:
        print(json.dumps({"schema": f"benchmarks/{command}/1", **facts, "environment": environment()}, indent=2))
        return
    for name, value in flatten(facts):
        print(f"{name:<24} {value:.4f}" if isinstance(value, float) else f"{name:<24} {value}")


def flatten(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested facts as dotted names."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)

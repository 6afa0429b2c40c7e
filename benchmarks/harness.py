"""What all benchmarks share: CPU time, the machine they ran on, and how results are printed and saved."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.backends.openssl import backend

from protocols.primitives.keys import SUITES

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"


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
        "processor": _processor(),
        "cores": os.cpu_count(),
        "openssl": backend.openssl_version_text(),
        "packages": {name: version(name) for name in packages},
    }


def _processor() -> str:
    """What Linux calls the processor; elsewhere what Python does, which may be nothing."""
    facts = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", facts.read_text(), re.MULTILINE) if facts.exists() else []
    return str(names[0]) if names else platform.processor()


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """How a benchmark's facts leave it."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--save", type=_name, metavar="NAME", help="also write results/NAME.json")


def add_suite_option(parser: argparse.ArgumentParser) -> None:
    """Which suite a round has."""
    parser.add_argument(
        "--suite", type=int, default=1, choices=sorted(SUITES), help="1: X25519; 2: X25519 with ML-KEM-768"
    )


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", text):
        raise argparse.ArgumentTypeError(f"names are lower-case letters, digits and hyphens, got {text!r}")
    return text


def publish(name: str, facts: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Prints one JSON object, or one line for each number; `--save` keeps it with the command that made it."""
    document = {"schema": f"benchmarks/{name}/1", **facts, "environment": environment()}
    if options.save:
        path = RESULTS / f"{options.save}.json"
        path.write_text(json.dumps({"command": options.line, **document}, indent=2) + "\n")
        say(f"wrote {path}")
    if options.json:
        print(json.dumps(document, indent=2))
        return
    for key, value in flatten(facts):
        print(f"{key:<28} {value:.4f}" if isinstance(value, float) else f"{key:<28} {value}")


def flatten(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested facts as dotted names; the places of a list are counted from 0."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield from flatten({str(place): item for place, item in enumerate(value)}, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)

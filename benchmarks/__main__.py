"""`python -m benchmarks NAME [options] [--json] [--save NAME]`."""

from __future__ import annotations

import argparse
import shlex
import sys

from protocols import ProtocolError

from . import (
    client_path,
    communication,
    costs,
    degrees,
    heterogeneity,
    lattice,
    record_level,
    scaling,
    sizes,
    speed,
    tables,
    utility,
)
from .peers import command as peers


def main(arguments: list[str] | None = None) -> int:
    """Runs one benchmark."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measurements, each beside its floor.")
    commands = parser.add_subparsers(required=True, metavar="NAME")
    for benchmark in (
        speed, sizes, scaling, record_level, client_path, peers, degrees, lattice, utility, heterogeneity,
        communication, tables, costs,
    ):  # fmt: skip
        benchmark.add_command(commands)
    options = parser.parse_args(
        arguments, argparse.Namespace(line=shlex.join(["python", "-m", "benchmarks", *arguments]))
    )
    try:
        return int(options.command(options))
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except ProtocolError as error:
        print(f"benchmarks: the round was aborted: {error}", file=sys.stderr)
        return 4


if __name__ == "__main__":
    sys.exit(main())

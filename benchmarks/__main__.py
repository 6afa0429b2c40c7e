"""`python -m benchmarks NAME [options] [--json]`."""

from __future__ import annotations

import argparse
import sys

from . import speed


def main(arguments: list[str] | None = None) -> int:
    """Runs one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measurements, each beside its floor.")
    commands = parser.add_subparsers(required=True, metavar="NAME")
    speed.add_command(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.command(options))
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

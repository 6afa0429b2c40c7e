"""`secagg attack`: the red team against the defences. Exit code 1 if a defence that should hold does not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .attack_report import TITLES, verdict, write_attack_report

if TYPE_CHECKING:
    from .attacks.matrix import Matrix


def add_attack_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand."""
    attack = commands.add_parser(
        "attack",
        help="run published attacks against every defence, and compare with what is claimed",
        description="Every attack against five defences, each on real rounds. Cells where masking alone does not help "
        "say so. Exit code 1: a defence that should hold does not.",
    )
    attack.add_argument("names", nargs="+", metavar="ATTACK", help="'all', or names of attacks, or 'list'")
    attack.add_argument("--out", type=Path, help="folder for report.html and report.json")
    attack.add_argument("--smoke", action="store_true", help="small and quick, on digits")
    attack.add_argument("--json", action="store_true", help="print one JSON object")
    attack.set_defaults(command=_attack)


def _attack(options: argparse.Namespace) -> int:
    from .attacks.matrix import EXPERIMENTS, run_matrix, write_json
    from .cli import DONE, FINDING, print_json
    from .terminal import progress

    names = list(EXPERIMENTS) if options.names == ["all"] else options.names
    if names == ["list"]:
        names = []
        print("\n".join(EXPERIMENTS))
        return DONE
    with progress("attacking", len(names), quiet=options.json) as step:
        matrix = run_matrix(names, smoke=options.smoke, step=step)
    path = None
    if options.out is not None:
        write_json(matrix, options.out)
        command = " ".join(["secagg attack", *options.names, *(["--smoke"] if options.smoke else [])])
        path = write_attack_report(matrix, options.out, command=command)
    if options.json:
        print_json("attack", {**matrix.to_dict(), "report": None if path is None else str(path)})
    else:
        _show(matrix)
        if path is not None:
            print(f"report  {path}")
    return FINDING if matrix.broken else DONE


def _show(matrix: Matrix) -> None:
    """The table for people."""
    from .terminal import show_table

    rows = []
    for attack, row in matrix.cells.items():
        first = next(iter(row.values()))
        cells = [f"{row[name].value:.2f} {row[name].verdict}" if name in row else "" for name in TITLES]
        rows.append((attack, f"{first.prior:.2f}", *cells))
    print(f"pictures: {matrix.pictures}; larger numbers are worse for the clients; metrics stand in report.json\n")
    show_table(("attack", "guess", *TITLES.values()), rows)
    print()
    for attack, defence in matrix.weak:
        print(f"weak attack: {attack} against {defence} did less than it is known to do")
    for attack, defence in matrix.broken:
        outcome = matrix.cells[attack][defence]
        print(f"BROKEN: {attack} against {defence}: {outcome.value:.3f} passes {outcome.threshold:.3f}")
    print(verdict(matrix))

"""Seeded faults (`faults`): each makes a test fail, or the suite has a hole.

`python -m tests.deep.mutants [WORD ...]`, all faults or those whose name or file holds one of the words.

1. The packages and tests are copied; the targets pass there unchanged.
2. Each fault replaces one text that occurs exactly once. Then one of its targets must fail: an import that breaks or a
   test that is not there counts for nothing. A run that takes too long is noticed too.
3. Exit code 1: a fault was missed, or could not be made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .faults import FAULTS as PROTOCOL_FAULTS
from .faults import Fault
from .ledger_faults import LEDGER_FAULTS

FAULTS = (*PROTOCOL_FAULTS, *LEDGER_FAULTS)
ROOT = Path(__file__).parents[2]
COPIED = ("protocols", "dp", "secagg", "benchmarks", "tests", "pyproject.toml", "README.md", "ARCHITECTURE.md")
SECONDS = 300  # for the targets of one fault; they take a few
PASSED, FAILED, HANGS = 0, 1, -1  # the first two are pytest's


def misplaced() -> list[str]:
    """Faults whose text does not occur exactly once: they would test nothing."""
    return [fault.name for fault in FAULTS if (ROOT / fault.file).read_text().count(fault.old) != 1]


def outcome(folder: Path, targets: Iterable[str], seconds: float | None = SECONDS) -> int:
    """How pytest ends on these targets in a copy."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *targets]
    # Without bytecode: a fault of the same length within the same second would run as the code before it.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, timeout=seconds, check=False, env=environment
        ).returncode
    except subprocess.TimeoutExpired:
        return HANGS


def with_fault(folder: Path, fault: Fault) -> int:
    """How pytest ends on the fault's targets while the fault is there."""
    path = folder / fault.file
    text = path.read_text()
    path.write_text(text.replace(fault.old, fault.new))
    try:
        return outcome(folder, fault.targets)
    finally:
        path.write_text(text)


def main(words: list[str]) -> int:
    """Runs them from the command line."""
    if misplaced():
        print("not found exactly once:", *misplaced(), sep="\n  ")
        return 1
    faults = [fault for fault in FAULTS if not words or any(word in fault.name + fault.file for word in words)]
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for one in COPIED:
            source, target = ROOT / one, copy / one
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        if outcome(copy, sorted({target for fault in faults for target in fault.targets}), seconds=None) != PASSED:
            print("the targets do not pass without any fault")
            return 1
        missed = []
        for number, fault in enumerate(faults, 1):
            code = with_fault(copy, fault)
            verdict = {PASSED: "MISSED", FAILED: "caught", HANGS: "caught"}.get(code, f"BROKEN, pytest gave {code}")
            print(f"{number}/{len(faults)} {verdict}: {fault.name} ({fault.file})", flush=True)
            missed += [] if verdict == "caught" else [fault.name]
    print(f"{len(faults) - len(missed)} of {len(faults)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`secagg audit`: canaries through the real path of one configuration, and the bugs that the audit must find.

Exit code 1 is a finding: a check that failed on the code as it is, or a bug that no check found.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli import DONE, FINDING, add_config_options, config_facts, print_json, read_config, readable
from .terminal import progress, show_table

if TYPE_CHECKING:
    from .audit import AuditReport
    from .audit_defects import Defect
    from .config import AggregationConfig

DEFECT_TRIALS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """What the audit said of one bug."""

    defect: Defect
    report: AuditReport

    @property
    def found(self) -> bool:
        """Whether the check that must find it did."""
        return any(check.name == self.defect.detector and not check.passed for check in self.report.checks)

    @property
    def failed(self) -> list[str]:
        """Every check that the bug failed."""
        return [check.name for check in self.report.checks if not check.passed]


def add_audit_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `audit`."""
    command = commands.add_parser(
        "audit",
        help="lower bounds on epsilon from canaries through the real path",
        description="Tests the claims of a configuration on the code that keeps them, and the tests on known bugs.",
    )
    add_config_options(command)
    command.add_argument("--trials", type=int, help="canary trials (default: as many as some 20 seconds allow)")
    command.add_argument("--confidence", type=float, default=0.95, help="of all bounds together (default: %(default)s)")
    command.add_argument("--no-defects", action="store_true", help="leave out the bugs that the audit must find")
    command.add_argument("--out", type=Path, help="folder for report.html and report.json")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(command=_audit)


def _audit(options: argparse.Namespace) -> int:
    from .audit import audit_privacy
    from .audit_defects import defects_of

    config = read_config(options)
    with progress("canaries", 20, quiet=options.json) as step:

        def advance(done: int, of: int) -> None:
            if done * 20 // of > (done - 1) * 20 // of:
                step()

        report = audit_privacy(config, trials=options.trials, confidence=options.confidence, progress=advance)
    caught = []
    defects = [] if options.no_defects else defects_of(config)
    with progress("bugs on purpose", max(1, len(defects)), quiet=options.json or not defects) as step:
        for defect in defects:
            found = audit_privacy(config, trials=DEFECT_TRIALS, confidence=options.confidence, path=defect.path)
            caught.append(Caught(defect=defect, report=found))
            step(defect.name)
    facts = audit_facts(config, report, caught)
    if options.out is not None:
        from .audit_report import write_audit_report

        page = write_audit_report(options.out, config, report, caught, facts)
        facts["report"] = str(page)
    if options.json:
        print_json("audit", facts)
    else:
        _show(report, caught, facts)
    return DONE if facts["passed"] else FINDING


def audit_facts(config: AggregationConfig, report: AuditReport, caught: list[Caught]) -> dict[str, Any]:
    """The documented keys of `secagg audit --json`."""
    return {
        **config_facts(config),
        "audit": report.to_dict(),
        "defects": [
            {
                "name": one.defect.name,
                "detector": one.defect.detector,
                "found": one.found,
                "failed": one.failed,
                "bound": one.report.bounds.epsilon,
            }
            for one in caught
        ],
        "passed": report.passed and all(one.found for one in caught),
        "report": None,
    }


def verdict(report: AuditReport, caught: list[Caught]) -> str:
    """The finding in a sentence or two."""
    failed = [check.name for check in report.checks if not check.passed]
    missed = [one.defect.name for one in caught if not one.found]
    if failed:
        return f"The code does not keep its claim: {', '.join(failed)} failed."
    kept = (
        f"No check disproves the claim: at least epsilon {report.bounds.epsilon:.2f} leaks in one round, "
        f"{report.claimed:.2f} is claimed."
    )
    if missed:
        return f"{kept} But the audit is too weak here: it did not find {', '.join(missed)}."
    return f"{kept} All {len(caught)} bugs on purpose were found." if caught else kept


def _show(report: AuditReport, caught: list[Caught], facts: dict[str, Any]) -> None:
    print(verdict(report, caught))
    rows = [
        (
            check.name,
            "passed" if check.passed else "FAILED",
            readable(check.measured),
            readable(check.limit),
            check.reason,
        )
        for check in report.checks
    ]
    show_table(("check", "", "measured", "limit", "what"), rows)
    bounds = ", ".join(f"{name} {bound:.2f}" for name, bound in report.bounds.bounds.items())
    print(
        f"bounds on epsilon from {report.trials} trials, together at {report.bounds.confidence:.0%} confidence: "
        f"{bounds}; "
        f"the attacker's AUC is {report.bounds.auroc:.3f}"
    )
    if caught:
        show_table(
            ("bug on purpose", "", "must fail", "failed"),
            [
                (one.defect.name, "found" if one.found else "MISSED", one.defect.detector, ", ".join(one.failed))
                for one in caught
            ],
        )
    if facts["report"]:
        print(f"report: {facts['report']}")

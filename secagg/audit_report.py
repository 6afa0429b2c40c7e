"""The page that `secagg audit --out` leaves behind, and the same facts as JSON beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli import finite
from .report import Bar, Bars, Marked, Section, Table, write_report

if TYPE_CHECKING:
    from .audit import AuditReport
    from .audit_command import Caught
    from .config import AggregationConfig


def write_audit_report(
    folder: Path, config: AggregationConfig, report: AuditReport, caught: list[Caught], facts: dict[str, Any]
) -> Path:
    """Writes report.html and report.json into the folder; returns the page's path."""
    from .audit_command import verdict

    def outcome(good: str, bad: str, is_good: bool) -> Marked:
        return Marked(good, "safe") if is_good else Marked(bad, "leak")

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(finite(facts), indent=2) + "\n")
    sections = [
        Section(
            title="What was tested",
            text="One canary, with its whole norm on one coordinate, was there or not by the toss of a coin, in "
            f"{report.trials} trials. All clients encoded and noised as they always do; trials were masked together "
            "and summed by real rounds with the fewest survivors that are accepted, and the shares of colluders were "
            "taken off. The attacker sees what is left.",
            table=Table(
                header=("check", "outcome", "measured", "limit", "what"),
                rows=[
                    (check.name, outcome("passed", "FAILED", check.passed), check.measured, check.limit, check.reason)
                    for check in report.checks
                ],
            ),
        ),
        Section(
            title="Lower bounds on epsilon",
            text=f"All bounds hold together with {report.bounds.confidence:.0%} confidence; every further estimator "
            "and threshold was paid for. The first two need no independence between canaries. The last row is the "
            f"claim for one round, without amplification, at delta {report.bounds.delta:g}. The attacker's area under "
            f"the ROC curve is {report.bounds.auroc:.3f}.",
            table=Table(
                header=("estimator", "epsilon"),
                rows=[*((name, bound) for name, bound in report.bounds.bounds.items()), ("claimed", report.claimed)],
            ),
        ),
    ]
    if caught:
        sections.append(
            Section(
                title="Bugs on purpose",
                text="Privacy bugs that implementations have had, one at a time in place of the client's path. Each "
                "must fail the check that it names; an audit that missed one would say little about what it passes.",
                charts=[
                    Bars(
                        title="what the canaries prove of epsilon, against the claim",
                        x_label="epsilon, at least",
                        bars=[
                            Bar(
                                label=name,
                                value=audited.bounds.epsilon,
                                limit=audited.claimed,
                                tone="leak" if audited.bounds.epsilon > audited.claimed else "safe",
                            )
                            for name, audited in (
                                ("the code as it is", report),
                                *((one.defect.name, one.report) for one in caught),
                            )
                        ],
                    )
                ],
                table=Table(
                    header=("path", "outcome", "must fail", "failed", "epsilon at least"),
                    rows=[
                        (
                            "the code as it is",
                            outcome("passed", "FAILED", report.passed),
                            "",
                            "",
                            report.bounds.epsilon,
                        ),
                        *(
                            (
                                one.defect.name,
                                outcome("found", "MISSED", one.found),
                                one.defect.detector,
                                ", ".join(one.failed),
                                one.report.bounds.epsilon,
                            )
                            for one in caught
                        ),
                    ],
                ),
            )
        )
    sections.append(
        Section(
            title="What this does not show",
            text="- Bounds are lower bounds: a small one is no proof of privacy. The proof is the accounting.\n"
            "- One round was tested. That rounds add up is computed, not sampled.\n"
            "- Weights, metrics and votes on the clip norm were left out: updates alone were tested.\n"
            "- Masks were tested for exact sums alone; that they hide is a matter of the protocol and its own tests.\n"
            "- Whoever runs other code than this, or lies about it, is not covered.",
        )
    )
    return write_report(
        folder / "report.html",
        "Privacy audit",
        verdict(report, caught),
        sections,
        footer=f"configuration {config.digest().hex()}; repeat with secagg audit and the same options",
    )

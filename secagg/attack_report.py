"""The page that `secagg attack --out` leaves behind: every attack against every defence, with pictures and curves."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

from .report import Curve, Curves, Marked, Picture, Section, Table, write_report

if TYPE_CHECKING:
    from .attacks.matrix import Matrix
    from .attacks.outcome import Outcome

TITLES = {
    "plain": "plain FedAvg",
    "masked": "masked",
    "local": "local noise",
    "noised": "masked, noised",
    "bound": "and bound, inspected",
}
_TONES = {"leaks": "leak", "broken": "leak", "holds": "safe", "weak attack": "neutral"}
_SHOWN = ("plain", "masked", "noised")  # whose ROC is drawn, beside the bound


def write_attack_report(matrix: Matrix, folder: Path, *, command: str) -> Path:
    """Writes report.html into the folder; returns its path."""
    sections = [
        Section(
            title="Every attack against every defence",
            text="Larger numbers are worse for the clients; what is measured stands in the last table, by attack. "
            '"Guess" is what the same number is without any view. A cell that leaks although nothing claims to stop '
            "the attack stays in the table: masking alone is no protection from it.",
            table=Table(
                header=("attack", "guess", *TITLES.values()),
                rows=[
                    (
                        attack,
                        f"{next(iter(row.values())).prior:.2f}",
                        *(_cell(row[defence]) if defence in row else "" for defence in TITLES),
                    )
                    for attack, row in matrix.cells.items()
                ],
            ),
        ),
        *_pictures(matrix),
        *_curves(matrix),
        Section(
            title="What was measured",
            text=f"Noise was calibrated to epsilon {matrix.to_dict()['epsilon']:g} at delta "
            f"{matrix.to_dict()['delta']:g} in one round. An attack has succeeded when it passes its threshold; what "
            "was expected was stated with the experiment, not after it.",
            table=Table(
                header=("attack", "defence", "verdict", "value", "guess", "threshold", "metric", "conditions"),
                rows=[
                    (
                        attack,
                        TITLES[defence],
                        _mark(outcome, outcome.verdict),
                        outcome.value,
                        outcome.prior,
                        outcome.threshold,
                        outcome.metric,
                        outcome.note,
                    )
                    for attack, row in matrix.cells.items()
                    for defence, outcome in row.items()
                ],
            ),
        ),
        Section(
            title="What this does not show",
            text="- An attack that failed here may succeed with more effort, other data or another model. Only noise "
            "is a bound for all attacks, and only at its epsilon.\n"
            "- Noise hides one client or record, not what is true of the whole cohort: label histograms, class means "
            "remain.\n"
            "- Binding makes the server send everybody one model, not an honest model, and the inspection "
            "has blind spots that its documentation names.\n"
            "- Nothing protects from the client's own device.",
        ),
    ]
    return write_report(
        folder / "report.html",
        "Attacks and defences",
        verdict(matrix),
        sections,
        footer=f"Pictures: {matrix.pictures}. Repeat with: {command}. The same numbers stand in report.json.",
    )


def verdict(matrix: Matrix) -> str:
    """The finding in a sentence or two."""
    outcomes = [outcome for row in matrix.cells.values() for outcome in row.values()]
    masked = [row["masked"].verdict == "leaks" for row in matrix.cells.values() if "masked" in row]
    if matrix.broken:
        names = "; ".join(f"{attack} against {TITLES[defence]}" for attack, defence in matrix.broken)
        return f"A defence that should hold did not: {names}."
    held = sum(outcome.expectation == "holds" for outcome in outcomes)
    return (
        f"Every defence that should hold held, in {held} cells. Masking alone leaks in {sum(masked)} of {len(masked)} "
        "attacks, as the table says: it hides who sent what, not what the sum gives away."
    )


def _pictures(matrix: Matrix) -> list[Section]:
    """A strip for each attack that makes pictures: the truth, and the closest the attacker came under each defence."""
    sections = []
    for attack, row in matrix.cells.items():
        shown = {defence: outcome for defence, outcome in row.items() if outcome.images}
        if not shown:
            continue
        _, truth = next(iter(shown.values())).images[0]
        pictures = [Picture(caption="what a client holds", image=truth, note="the truth")]
        pictures += [
            Picture(
                caption=TITLES[defence],
                image=outcome.images[-1][1],
                note=f"{outcome.images[-1][0]}: {outcome.verdict}",
                tone=_TONES[outcome.verdict],  # type: ignore[arg-type]
            )
            for defence, outcome in shown.items()
        ]
        same = all(outcome.images[0][1] is truth for outcome in shown.values())
        text = "" if same else "The picture shown is the one that came out best; it may be another under each defence."
        sections.append(Section(title=f"Pictures: {attack}", text=text, pictures=pictures))
    return sections


def _curves(matrix: Matrix) -> list[Section]:
    """ROC over decades for each attack that scores members, with the curve that no test passes under the noise."""
    charts = []
    for attack, row in matrix.cells.items():
        series = [
            Curve(name=TITLES[name], points=row[name].curve) for name in _SHOWN if name in row and row[name].curve
        ]
        if not series:
            continue
        bound = row["noised"].details.get("bound", 1.0) if "noised" in row else 1.0
        if bound < 1:
            normal = NormalDist()
            mu = 2**0.5 * normal.inv_cdf(bound)
            alarms = [10 ** (power / 10) for power in range(-30, 0)]
            limit = [(alarm, normal.cdf(normal.inv_cdf(alarm) + mu)) for alarm in alarms]
            series.append(Curve(name="no test passes", points=[*limit, (1.0, 1.0)]))
        charts.append(Curves(title=attack, x_label="false alarms", y_label="found", series=series))
    if not charts:
        return []
    text = (
        "Of how many members an attacker finds at each share of false alarms. Under noise no test can pass the bound, "
        "but for the chance of finitely many trials."
    )
    return [Section(title="Membership", text=text, charts=charts)]


def _cell(outcome: Outcome) -> Marked:
    return _mark(outcome, f"{outcome.value:.2f} {outcome.verdict}")


def _mark(outcome: Outcome, text: str) -> Marked:
    return Marked(text, _TONES[outcome.verdict])  # type: ignore[arg-type]

"""The page that `secagg demo` leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .report import Chart, Picture, Section, write_report
from .statement import RUNGS

if TYPE_CHECKING:
    from .demo import DemoOutcome


def write_demo_report(outcome: DemoOutcome) -> None:
    """Writes `outcome.report`."""
    from .demo import (
        ATTACK_LABELS,
        CLIENTS,
        DELTA,
        DROPOUTS_PER_ROUND,
        EPSILON,
        MAX_COLLUDERS,
        TRAINING_LABELS,
        verdict,
    )

    rounds = outcome.secure.rounds
    accuracy, scores = outcome.accuracy, outcome.attack.psnr
    epsilon = rounds[-1].epsilon
    pictures = [Picture(caption="what the client holds", image=outcome.attack.truth, note="the truth")]
    pictures += [
        Picture(
            caption=f"from {label}",
            image=outcome.attack.images[name],
            note=f"{scores[name]:.1f} dB, {verdict(name, scores)}",
        )
        for name, label in ATTACK_LABELS.items()
    ]
    lowest = min(min(curve) for curve in outcome.curves.values())
    gap = 100 * (accuracy["fedavg"] - accuracy["secure"])
    sections = [
        Section(
            title="Accuracy",
            text=f"{CLIENTS} clients hold handwritten digits, unevenly dealt. {DROPOUTS_PER_ROUND} of them fall silent in "
            "every round, one only after its masked vector arrived. Each curve runs from the first to the last of its "
            "own rounds or epochs; the table shows the final models.",
            chart=Chart(
                label="accuracy on held-out digits",
                axis="share of training done",
                series={TRAINING_LABELS[name]: curve for name, curve in outcome.curves.items()},
                low=max(0.0, int(10 * lowest) / 10),
                high=1.0,
            ),
            header=("training", "accuracy"),
            rows=tuple((TRAINING_LABELS[name], f"{value:.3f}") for name, value in accuracy.items()),
        ),
        Section(
            title="An attack on one picture",
            text="Gradient inversion with every advantage: each client sends the gradient of one picture, the model is "
            "the public starting point, the labels are known, and the best match is shown. Above 25 dB a picture is "
            "recognisable; the mean picture of all digits is the guess that needs no update at all.",
            pictures=tuple(pictures),
        ),
        Section(
            title="Budget",
            text=f"Epsilon for one record, against the server and {MAX_COLLUDERS} clients that help it, from the first "
            f"to the last round. The budget is {EPSILON:g} at delta {DELTA:g}; a round that would pass it is refused.",
            chart=Chart(
                label="epsilon spent",
                axis=f"{len(rounds)} rounds",
                series={"epsilon spent": [record.epsilon for record in rounds]},
                low=0.0,
                high=EPSILON,
            ),
        ),
        Section(
            title="Epsilon, adversary by adversary",
            text=f"For one record over all {len(rounds)} rounds, at the fewest survivors of any round.",
            header=("against", "epsilon"),
            rows=tuple((RUNGS[name], f"{value:.2f}") for name, value in outcome.ladder.to_dict().items()),
        ),
        Section(title="What was hidden, and what not", code=outcome.secure.statement()),
        Section(
            title="What this does not show",
            text="One run on one small data set, with one attack. A stronger attack may do better on the exact sum; what "
            "bounds every attack on the noised sum is epsilon. Settings were chosen on other splits of the same data, "
            "which epsilon does not count.",
        ),
        Section(
            title="Reproduce",
            code="secagg demo\n\n"
            f"budget ledgers of the server and of every client: {outcome.ledgers}\n"
            f"bytes that one client sent in a round: {outcome.bytes_up_per_client:,.0f}\n"
            f"the model as float32: {4 * outcome.secure.config.layout.length:,} bytes "
            "(on a model this small, keys and shares weigh more than the vector)",
        ),
    ]
    write_report(
        outcome.report,
        "Private federated training, and an attack on it",
        verdict=f"Masked and noised training reached {100 * accuracy['secure']:.1f} % at epsilon {epsilon:.2f}, "
        f"{gap:.1f} points from the same training without privacy. The server saw {len(rounds)} noised sums, each equal "
        "to the plain integer sum; of any one client it saw masked bytes.",
        sections=sections,
        footer="All numbers are of this run.",
    )

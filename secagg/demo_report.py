"""The page that `secagg demo` leaves behind."""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING

from .report import Chart, Picture, Section, Series, Table, write_report

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
    gap = 100 * (accuracy["fedavg"] - accuracy["secure"])
    pictures = [Picture(caption="what the client holds", image=outcome.attack.truth, note="the truth")]
    pictures += [
        Picture(
            caption=f"from {label}",
            image=outcome.attack.images[name],
            note=f"{scores[name]:.1f} dB, {verdict(name, scores)}",
            tone="neutral" if name == "prior" else "safe" if scores[name] <= scores["prior"] else "leak",
        )
        for name, label in ATTACK_LABELS.items()
    ]
    sections = [
        Section(
            title="Accuracy",
            text=f"{CLIENTS} clients hold handwritten digits, unevenly dealt. {DROPOUTS_PER_ROUND} of them fall silent "
            "in every round, one only after its masked vector arrived. The curves show the model after each of its own "
            "rounds or epochs, the table the final models.",
            charts=[
                Chart(
                    title="accuracy on held-out digits",
                    x_label="round or epoch",
                    series=[Series(name=TRAINING_LABELS[name], values=curve) for name, curve in outcome.curves.items()],
                )
            ],
            table=Table(
                header=("training", "accuracy"),
                rows=[(TRAINING_LABELS[name], f"{value:.3f}") for name, value in accuracy.items()],
            ),
        ),
        Section(
            title="An attack on one picture",
            text="Gradient inversion with every advantage: each client sends the gradient of one picture, the model is "
            "the public starting point, the labels are known, and the best match is shown. Above 25 dB a picture is "
            "recognisable; the mean picture of all digits is the guess that needs no update at all.",
            pictures=pictures,
        ),
        Section(
            title="Budget",
            text=f"Epsilon for one record, against the server and {MAX_COLLUDERS} clients that help it, after each "
            f"round. The budget is {EPSILON:g} at delta {DELTA:g}; a round that would pass it is refused.",
            charts=[
                Chart(
                    title="epsilon spent",
                    x_label="round",
                    series=[Series(name="epsilon", values=[record.epsilon for record in rounds])],
                )
            ],
        ),
        Section(
            title="What was hidden, and what not",
            text="As a data-protection officer would sign it:\n\n" + indent(outcome.secure.statement(), "    "),
        ),
        Section(
            title="What this does not show",
            text="One run on one small data set, with one attack. A stronger attack may do better on the exact sum; "
            "what bounds every attack on the noised sum is epsilon. Settings were chosen on other splits of the same "
            "data, which epsilon does not count.",
        ),
        Section(
            title="Reproduce",
            text="    secagg demo\n\n"
            f"The budget ledgers of the server and of every client lie in {outcome.ledgers}. In a round one client "
            f"sent {outcome.bytes_up_per_client:,.0f} bytes; the model as float32 has "
            f"{4 * outcome.secure.config.layout.length:,}. On a model this small, keys and shares weigh more than the "
            "vector.",
        ),
    ]
    write_report(
        outcome.report,
        "Private federated training, and an attack on it",
        f"Masked and noised training reached {100 * accuracy['secure']:.1f} % at epsilon {epsilon:.2f}, {gap:.1f} "
        f"points from the same training without privacy. The server saw {len(rounds)} noised sums, each equal to the "
        "plain integer sum; of any one client it saw masked bytes.",
        sections,
        footer="All numbers are of this run.",
    )

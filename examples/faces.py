"""Forty people, one photograph each: who can be recognised from what leaves their phones?

The photographs are the ORL faces (installed by the `data` extra; without it, handwritten digits, where "who" is the
digit). Each person is a client and sends the gradient of one photograph. The attacker reads a picture out of what it
sees and looks for the nearest face in a gallery of other photographs of the same people. Three things it may see: the
plain update, the masked bytes of one client, and the sum with noise.

    python examples/faces.py [--quick] [--out faces]
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

import secagg
from dp.auditing import clopper_pearson
from secagg.attacks.linear import LinearKnowledge, invert_linear
from secagg.attacks.pictures import fedsgd_update, load_pictures
from secagg.attacks.scoring import best_psnr, closest
from secagg.attacks.views import flat, observe
from secagg.report import Marked, Picture, Section, Table, write_report

UNITS, EPSILON, DELTA = 64, 4.0, 1e-5
SEEN = ("the plain update", "the masked bytes", "the noised sum")


def people(pictures, count):
    """One photograph of each person, and the others as a gallery."""
    kept, gallery = [], []
    for person in range(pictures.classes)[:count]:
        own = np.flatnonzero(pictures.labels == person)
        kept.append(own[0])
        gallery.extend(own[1:10])
    return pictures.take(np.array(kept)), pictures.take(np.array(gallery))


def read_picture(seen, side):
    """One picture out of a gradient of a fully-connected layer."""
    knowledge = LinearKnowledge(units=UNITS, inputs=side**2, images=1)
    found = invert_linear(seen, knowledge, rand=os.urandom, tries=500).clip(0, 1)
    return closest(np.zeros((side, side)), found.reshape(-1, side, side)) if len(found) else np.full((side, side), 0.5)


def who(picture, gallery):
    """The person whose photograph is nearest, brightness apart."""

    def centred(images):
        flat_images = images.reshape(len(images), -1)
        flat_images = flat_images - flat_images.mean(axis=1, keepdims=True)
        return flat_images / np.maximum(np.linalg.norm(flat_images, axis=1, keepdims=True), 1e-9)

    likeness = centred(gallery.images) @ centred(picture[None])[0]
    return int(gallery.labels[likeness.argmax()])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ten people")
    parser.add_argument("--out", type=Path, default=Path("faces"), help="folder for the page (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    pictures = load_pictures()
    private, gallery = people(pictures, 10 if options.quick else 40)
    count, side = len(private.labels), private.side
    model = nn.Sequential(nn.Flatten(), nn.Linear(side**2, UNITS), nn.ReLU(), nn.Linear(UNITS, pictures.classes))
    updates = {
        person + 1: fedsgd_update(model, private.images[person : person + 1], private.labels[person : person + 1])
        for person in range(count)
    }
    config = secagg.AggregationConfig.cross_silo(
        like=updates[1],
        clients=count,
        max_dropouts=0,
        max_colluders=1,
        privacy=secagg.ClientLevel(clip_norm=0.5, epsilon=EPSILON, delta=DELTA, rounds=1),
    )
    print(
        f"{pictures.name}: {count} people, {config.layout.length:,} parameters, one real round at epsilon {EPSILON:g}"
    )
    seen = observe(updates, config)
    from_sum = read_picture(seen.server, side)
    views = {
        client: {
            SEEN[0]: read_picture(flat(update), side),
            SEEN[1]: read_picture(seen.network.masked(client), side),
            SEEN[2]: from_sum,
        }
        for client, update in updates.items()
    }

    rows, strips = [], []
    chance = 1 / len(set(private.labels))
    for name in SEEN:
        found = [who(views[client][name], gallery) == private.labels[client - 1] for client in updates]
        low, high = clopper_pearson(sum(found), count, confidence=0.975)
        psnr = [best_psnr(private.images[c - 1][None], views[c][name][None])[0] for c in updates]
        rows.append((name, sum(found) / count, low, high, float(np.median(psnr))))
        print(
            f"{name:<18} {sum(found):>2} of {count} recognised ({low:.0%} to {high:.0%}; guessing {chance:.1%}), "
            f"median {np.median(psnr):.1f} dB"
        )
    for client in list(updates)[:5]:
        strip = [Picture(caption="the photograph", image=private.images[client - 1], note="the truth")]
        for name in SEEN:
            right = who(views[client][name], gallery) == private.labels[client - 1]
            strip.append(
                Picture(
                    caption=name,
                    image=views[client][name],
                    note="recognised" if right else "not recognised",
                    tone="leak" if right else "safe",
                )
            )
        strips.append(Section(title=f"Person {client}", pictures=strip))
    page = write_report(
        options.out / "faces.html",
        "Who can be recognised?",
        f"From plain updates {rows[0][1]:.0%} of {count} people are recognised; from what this library lets out, "
        f"{rows[1][1]:.0%} and {rows[2][1]:.0%}, where guessing gives {chance:.1%}.",
        [
            *strips,
            Section(
                title="All of them",
                table=Table(
                    header=("the attacker sees", "recognised", "at least", "at most", "median PSNR, dB"),
                    rows=[
                        (
                            name,
                            Marked(f"{share:.0%}", "leak" if low > chance else "safe"),
                            f"{low:.0%}",
                            f"{high:.0%}",
                            dB,
                        )
                        for name, share, low, high, dB in rows
                    ],
                ),
            ),
        ],
        footer=f"Intervals at 95 %. Epsilon {EPSILON:g} at delta {DELTA:g} protects one client.",
    )
    print(f"page  {page}")
    return rows


if __name__ == "__main__":
    main()

"""Sites that see different attacks train one detector, and one that senses faults in a shuttle's telemetry.

1. Connection records of the KDD Cup 1999: seven kinds of attacks, no normal traffic, each distinct record once. Ten
   sites with an attack mix of their own; sites drop out in every round, and one stays away for the second half.
   Recall is printed for each attack: an average would hide what becomes of the rare ones.
2. 49,097 readings of nine shuttle sensors at eight sites; 7 % are anomalies.

Epsilon protects one record. What that costs a rare attack shows in the table: what few records say is what noise hides.

    python examples/intrusion.py [--quick]
"""

import argparse
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import secagg
from dp.auditing import auroc
from secagg.adapters.torch import parameters_of
from secagg.datasets import INTRUSIONS, dirichlet_partition, load_intrusion, load_telemetry, split
from secagg.training import train

SEED, DELTA, EPSILON = 0, 1e-5, 4.0


def tensors(data):
    return TensorDataset(torch.from_numpy(data.features), torch.from_numpy(data.labels))


def linear(features, classes):
    torch.manual_seed(SEED)  # the first weights are public; noise and batches never come from here
    return nn.Linear(features, classes)


def scores(model, data):
    with torch.no_grad():
        return model(torch.from_numpy(data.features)).numpy()


def pooled(data, *, epochs, learning_rate):
    """What one place that holds all records would learn."""
    model = linear(data.features.shape[1], data.classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    for _ in range(epochs):
        for features, labels in torch.utils.data.DataLoader(tensors(data), batch_size=64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(features), labels).backward()
            optimizer.step()
    return model


def federated(data, sites, privacy, *, drop, **training):
    """A model of all sites, masked; what else protects it is `privacy`."""
    model_fn = partial(linear, data.features.shape[1], data.classes)
    config = secagg.AggregationConfig.cross_silo(
        like=parameters_of(model_fn()), clients=len(sites), max_dropouts=2, max_colluders=1, privacy=privacy
    )
    clients = {number: tensors(data.take(part)) for number, part in enumerate(sites, 1)}
    return train(model_fn, clients, config, drop=drop, **training)


def intrusion(quick):
    rounds, epochs = (30, 3) if quick else (300, 20)
    training, test = split(load_intrusion(), test_fraction=0.3, seed=SEED)
    sites = dirichlet_partition(training.labels, clients=10, alpha=0.3, seed=SEED, minimum=20)
    counts = np.array([np.bincount(training.labels[part], minlength=training.classes) for part in sites])
    print("records of each attack, by site")
    for name, row in zip(INTRUSIONS, counts.T, strict=True):
        print(f"  {name:<16}" + "".join(f"{count:>6}" for count in row))
    away = int(counts[:, INTRUSIONS.index("guess_passwd")].argmax()) + 1

    def drop(number, of):
        """One site after the other goes silent for a round; the one with most guessed passwords stays away later."""
        return {number % 10 + 1} | ({away} if number > of // 2 else set())

    unit = secagg.RecordLevel(
        clip_norm=1.0, epsilon=EPSILON, delta=DELTA, rounds=rounds, sampling_rate=0.05, records=len(training)
    )
    fedavg = federated(
        training, sites, secagg.NoPrivacy(clip_norm=100.0), rounds=3 * epochs, learning_rate=0.3, local_epochs=2,
        drop=lambda number: drop(number, 3 * epochs),
    )  # fmt: skip
    private = federated(
        training, sites, unit, rounds=rounds, learning_rate=2.0, drop=lambda number: drop(number, rounds)
    )  # fmt: skip
    models = {
        "one place": pooled(training, epochs=epochs, learning_rate=0.1),
        "masked": fedavg.model,
        f"epsilon {EPSILON:g}": private.model,
    }
    found = {name: scores(model, test).argmax(axis=1) == test.labels for name, model in models.items()}
    print(f"\nrecall on {len(test)} held-out records, in percent; site {away} was away for the second half")
    print(f"  {'attack':<16}{'trained':>8}{'tested':>8}" + "".join(f"{name:>12}" for name in models))
    for label, name in enumerate(INTRUSIONS):
        of = test.labels == label
        print(
            f"  {name:<16}{counts[:, label].sum():>8}{of.sum():>8}"
            + "".join(f"{100 * right[of].mean():>12.1f}" for right in found.values())
        )
    print(
        f"  {'all':<16}{len(training):>8}{len(test):>8}" + "".join(f"{100 * f.mean():>12.1f}" for f in found.values())
    )
    survivors = [record.survivors for record in private.rounds]
    print(
        f"{private.exact_sums} of {rounds} sums equal the plain sum of {min(survivors)} to {max(survivors)} sites, to "
        f"the last bit; epsilon spent {private.rounds[-1].epsilon:.2f}, against the server and one site"
    )


def telemetry(quick):
    rounds, epochs = (8, 1) if quick else (150, 3)
    data = load_telemetry()
    training, test = split(data, test_fraction=0.2, seed=SEED)
    sites = np.array_split(np.arange(len(training)), 8)
    unit = secagg.RecordLevel(
        clip_norm=1.0, epsilon=1.0, delta=1e-6, rounds=rounds, sampling_rate=0.01, records=len(training)
    )
    private = federated(training, sites, unit, rounds=rounds, learning_rate=2.0, drop=lambda number: {number % 8 + 1})
    print(f"\ntelemetry: {len(training):,} readings at 8 sites, {test.labels.sum()} anomalies of {len(test):,} tested")
    for name, model in (
        ("one place", pooled(training, epochs=epochs, learning_rate=0.1)),
        ("epsilon 1", private.model),
    ):
        margin = (scores(model, test) @ np.array([-1.0, 1.0])).astype(np.float64)
        alarm = margin > np.quantile(margin[test.labels == 0], 0.99)  # one false alarm in a hundred
        area = auroc(margin[test.labels == 1], margin[test.labels == 0])
        print(f"  {name:<12} area under the curve {100 * area:.1f}   recall at 1 % false alarms "
              f"{100 * alarm[test.labels == 1].mean():.1f} %")  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    quick = parser.parse_args(arguments).quick
    torch.set_num_threads(1)
    intrusion(quick)
    telemetry(quick)


if __name__ == "__main__":
    main()

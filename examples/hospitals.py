"""Five hospitals train one model on thyroid patients; no record leaves its hospital.

Real patients, real referral sites, between 71 and 5,493 each (installed by the `data` extra; without it, breast masses
dealt to five sites). Compared by the area under the ROC curve on held-out patients: each hospital alone, all in one
place, FedAvg without privacy, and masked training with noise at three budgets, where epsilon protects one patient: the
data has one row for each.

    python examples/hospitals.py [--quick]
"""

import argparse
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

import secagg
from dp.auditing import auroc
from secagg.adapters.torch import parameters_of
from secagg.datasets import dirichlet_partition, load_breast_cancer, load_thyroid, split
from secagg.training import train

SEED, DELTA, CLIP_NORM, SAMPLING_RATE = 0, 1e-5, 0.5, 0.04


def tensors(data):
    return TensorDataset(torch.from_numpy(data.features), torch.from_numpy(data.labels))


def load():
    """Sites by name, and the test part."""
    try:
        training, test = split(load_thyroid(), test_fraction=0.2, seed=SEED)
        sites = training.by_site()
    except ImportError:
        training, test = split(load_breast_cancer(), test_fraction=0.2, seed=SEED)
        parts = dirichlet_partition(training.labels, clients=5, alpha=0.5, seed=SEED, minimum=20)
        sites = {f"site {number}": training.take(part) for number, part in enumerate(parts, 1)}
    return sites, test


def network(features):
    torch.manual_seed(SEED)  # the first weights are public; noise and batches never come from here
    return nn.Sequential(nn.Linear(features, 32), nn.Tanh(), nn.Linear(32, 2))


def score(model, test):
    with torch.no_grad():
        odds = (model(torch.from_numpy(test.features)) @ torch.tensor([-1.0, 1.0])).numpy().astype(np.float64)
    return 100 * auroc(odds[test.labels == 1], odds[test.labels == 0])


def train_in_one_place(model, data, epochs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for features, labels in DataLoader(data, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(features), labels).backward()
            optimizer.step()
    return model


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    quick = parser.parse_args(arguments).quick
    torch.set_num_threads(1)  # the model is tiny: threads would only wait for each other
    rounds, epochs, budgets = (15, 2, (4.0,)) if quick else (300, 20, (2.0, 4.0, 8.0))

    sites, test = load()
    clients = {number: tensors(data) for number, data in enumerate(sites.values(), 1)}
    model_fn = partial(network, test.features.shape[1])
    records = sum(len(data) for data in sites.values())

    def config(privacy):
        return secagg.AggregationConfig.cross_silo(
            like=parameters_of(model_fn()), clients=5, max_dropouts=0, max_colluders=1, privacy=privacy
        )

    alone = {}
    for name, data in sites.items():
        alone[name] = score(train_in_one_place(model_fn(), tensors(data), epochs), test)
        print(f"{name + ' alone':<28} {len(data):>5} patients   AUC {alone[name]:.1f}")
    pooled = score(train_in_one_place(model_fn(), ConcatDataset(clients.values()), epochs), test)
    print(f"{'all in one place':<28} {records:>5} patients   AUC {pooled:.1f}")
    plain = config(secagg.NoPrivacy(clip_norm=100.0))
    fedavg = train(model_fn, clients, plain, rounds=epochs, learning_rate=0.1, local_epochs=2)
    print(f"{'FedAvg, masked, no noise':<28} {records:>5} patients   AUC {score(fedavg.model, test):.1f}")
    for epsilon in budgets:
        unit = secagg.RecordLevel(
            clip_norm=CLIP_NORM, epsilon=epsilon, delta=DELTA, rounds=rounds, sampling_rate=SAMPLING_RATE,
            records=records,
        )  # fmt: skip
        secure = train(model_fn, clients, config(unit), rounds=rounds, learning_rate=1.0)
        reached = score(secure.model, test)
        gains = {name: reached - own for name, own in alone.items()}
        most = max(gains, key=gains.__getitem__)
        print(
            f"{'masked and noised':<28} {records:>5} patients   AUC {reached:.1f}   epsilon {epsilon:g}; "
            f"{most} gains most: {gains[most]:+.1f}"
        )
        if epsilon == 4.0:
            statement = secure.statement()
    print(f"\nFor the data-protection officer, at epsilon 4:\n{statement}")


if __name__ == "__main__":
    main()

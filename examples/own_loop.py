"""From an Opacus loop to a federation: your loop, then weights and metrics that ride masked, then an audit.

1. Four hospitals run the loop that every Opacus tutorial shows. What is new: `loss_reduction="sum"`, and that the step
   is on the sum over all hospitals, which arrives after a round.
2. Any local training: each hospital's number of records weighs its update, and its loss rides along. Nobody sees
   either: they travel in the same masked vector. Noise for whole hospitals would need hundreds of them: epsilon is
   infinite here.
3. The claimed epsilon is put to the test on the code that keeps it, and the same test on a bug made on purpose.

    python examples/own_loop.py [--quick]
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secagg
from dp.record_level import SecurePrivacyEngine
from secagg.adapters.torch import load_parameters, parameters_of
from secagg.audit import audit_privacy, honest_path
from secagg.audit_defects import defects_of
from secagg.datasets import dirichlet_partition, load_breast_cancer, split

SEED, HOSPITALS, DELTA = 0, 4, 1e-5
DEFECT = "half the noise variance"


def network(features):
    torch.manual_seed(SEED)  # the first weights are public; noise and batches never come from here
    return nn.Linear(features, 2)


def accuracy(model, data):
    with torch.no_grad():
        return 100 * float((model(torch.from_numpy(data.features)).argmax(1).numpy() == data.labels).mean())


def opacus_loop(hospitals, test, records, rounds):
    """Step 1. Every hospital has a model, an optimizer and a loader of its own, as ever."""
    unit = secagg.RecordLevel(
        clip_norm=1.0, epsilon=4.0, delta=DELTA, rounds=rounds, sampling_rate=0.1, records=records
    )  # fmt: skip
    config = secagg.AggregationConfig.cross_silo(
        like=parameters_of(network(test.features.shape[1])), clients=HOSPITALS, max_dropouts=1, max_colluders=1,
        privacy=unit,
    )  # fmt: skip
    federation = secagg.Simulation(config, clients=hospitals)
    parties = {}
    for hospital, data in hospitals.items():
        model = network(test.features.shape[1])
        engine = SecurePrivacyEngine()
        module, optimizer, loader = engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.9),
            data_loader=DataLoader(data),
            loss_reduction="sum",
            unit=unit,
            mechanism=config.mechanism,
        )
        parties[hospital] = (model, module, optimizer, loader, engine)
    batches = {hospital: iter(()) for hospital in parties}
    for number in range(rounds):
        contributions = {}
        for hospital, (_, module, optimizer, loader, _) in parties.items():
            batch = next(batches[hospital], None)
            if batch is None:  # a pass is over: the next one begins
                batches[hospital] = iter(loader)
                batch = next(batches[hospital])
            features, labels = batch
            optimizer.zero_grad()
            if len(labels):  # a secret Poisson batch may be empty; then noise alone is sent
                nn.functional.cross_entropy(module(features), labels, reduction="sum").backward()
            contributions[hospital] = optimizer.contribution()
        absent = {number % HOSPITALS + 1}  # a hospital that falls silent before it has sent anything
        result = federation.round(contributions, drop=absent)
        for _, _, optimizer, _, _ in parties.values():  # the sum is sent back to everybody, also to who was silent
            optimizer.apply(result.total, survivors=len(result.survivors))
    model, _, _, _, engine = parties[1]
    print(
        f"1. your own Opacus loop: {accuracy(model, test):.1f} % right; epsilon {engine.get_epsilon(DELTA):.2f} by the "
        f"engine, {result.epsilon:.2f} by the server; {federation.exact_sums} of {rounds} sums exact"
    )
    return config


def weights_and_metrics(hospitals, test, rounds):
    """Step 2. FedAvg, weighed by numbers of records that no one sees, and the mean loss."""
    model = network(test.features.shape[1])
    state = parameters_of(model)
    config = secagg.AggregationConfig.cross_silo(
        like=state, clients=HOSPITALS, max_dropouts=1, max_colluders=0, privacy=secagg.NoPrivacy(clip_norm=10.0),
        weights=secagg.PrivateWeights(largest=500), metrics={"loss": (0.0, 2.0)},
    )  # fmt: skip
    federation = secagg.Simulation(config, clients=hospitals)

    def update(hospital):
        """Any local training at all."""
        features, labels = hospitals[hospital].tensors
        load_parameters(model, state)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(features), labels)
            loss.backward()
            optimizer.step()
        return secagg.Contribution(
            update={name: array - state[name] for name, array in parameters_of(model).items()},
            weight=len(labels),
            metrics={"loss": float(loss.detach())},
        )

    for number in range(rounds):
        result = federation.round(update, drop={number % HOSPITALS + 1}, model=state)
        state = {name: array + result.mean[name] for name, array in state.items()}
    load_parameters(model, state)
    print(
        f"2. weights and metrics that ride masked: {accuracy(model, test):.1f} % right; the last round had "
        f"{result.weight:.0f} records of {len(result.survivors)} hospitals with a mean loss of "
        f"{result.metrics['loss']:.3f}; epsilon {result.epsilon}"
    )


def own_audit(config, trials):
    """Step 3. Canaries through the path of step 1, and through the same path with too little noise."""
    print("3. an audit of one round, with every record drawn")
    print(f"   {'what runs':<34}{'claimed epsilon':>16}{'at least':>10}   checks that failed")
    [defect] = [defect for defect in defects_of(config) if defect.name == DEFECT]
    for name, path in (("the library", honest_path), (f"a bug: {defect.name}", defect.path)):
        report = audit_privacy(config, trials=trials, path=path)
        failed = ", ".join(check.name for check in report.checks if not check.passed)
        print(f"   {name:<34}{report.claimed:>16.2f}{report.bounds.epsilon:>10.2f}   {failed or 'none'}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds and trials")
    quick = parser.parse_args(arguments).quick
    torch.set_num_threads(1)
    training, test = split(load_breast_cancer(), test_fraction=0.3, seed=SEED)
    parts = dirichlet_partition(training.labels, clients=HOSPITALS, alpha=1.0, seed=SEED, minimum=40)
    hospitals = {
        number: TensorDataset(torch.from_numpy(training.features[part]), torch.from_numpy(training.labels[part]))
        for number, part in enumerate(parts, 1)
    }
    print(f"{len(training)} breast masses at {HOSPITALS} hospitals, {len(test)} for the test")
    config = opacus_loop(hospitals, test, len(training), rounds=30 if quick else 100)
    weights_and_metrics(hospitals, test, rounds=3 if quick else 30)
    own_audit(config, trials=150 if quick else 3000)


if __name__ == "__main__":
    main()

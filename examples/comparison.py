"""Traditional against federated learning, on the same data: what each costs, and what each gives away.

5,000 handwritten digits of MNIST, dealt to ten clients with unlike shares of the digits; softmax regression, in plain
numpy. Four ways, each measured, none modelled:

- *pooled*: clients send their data, one place trains;
- *federated*: clients send updates in the clear (FedAvg), the server averages them;
- *masked*: the same through secure aggregation; two clients drop out in every round;
- *masked and noised*: the same with noise that protects each record at epsilon 8 (federated SGD on per-record
  gradients).

CPU is process time around what that party does; training is in it. The table is Markdown, as it stands in README.

    python examples/comparison.py [--quick]
"""

import argparse
import sys
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np

import secagg
from secagg.datasets import dirichlet_partition, load_digits, load_mnist, split

SEED, CLIENTS, CLASSES, DELTA, EPSILON = 0, 10, 10, 1e-5, 8.0


def zeros(features):
    return {"weight": np.zeros((features, CLASSES), np.float32), "bias": np.zeros(CLASSES, np.float32)}


def per_record_gradients(model, features, labels):
    """The gradients of the cross-entropy of each record, by name, one leading record axis."""
    scores = features @ model["weight"] + model["bias"]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    errors = odds / odds.sum(axis=1, keepdims=True) - np.eye(CLASSES, dtype=np.float32)[labels]
    return {"weight": features[:, :, None] * errors[:, None, :], "bias": errors}


def local_training(model, data, epochs):
    """The model after some passes over the data of one place."""
    model = {name: array.copy() for name, array in model.items()}
    for _ in range(epochs):
        for start in range(0, len(data), 16):
            batch = slice(start, start + 16)
            gradients = per_record_gradients(model, data.features[batch], data.labels[batch])
            for name, rows in gradients.items():
                model[name] -= np.float32(0.5) * rows.mean(axis=0)
    return model


def accuracy(model, data):
    return 100 * float(((data.features @ model["weight"] + model["bias"]).argmax(axis=1) == data.labels).mean())


class Bill:
    """Bytes that clients sent, and CPU seconds of clients and server."""

    def __init__(self):
        self.bytes, self.seconds = 0, Counter()

    @contextmanager
    def on(self, party):
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[party] += time.process_time() - start

    def row(self, name, model, test, *seen):
        cells = (
            name, f"{accuracy(model, test):.1f} %", f"{self.bytes / CLIENTS / 1000:,.0f} kB",
            f"{self.seconds['client'] / CLIENTS:.2f} s", f"{self.seconds['server']:.2f} s", *seen,
        )  # fmt: skip
        return f"| {' | '.join(cells)} |"


COLUMNS = (
    "way", "accuracy", "upload per client", "CPU per client", "CPU of the server", "the server sees",
    "the models tell of one record",
)  # fmt: skip


def absent(number):
    """Two clients that are invited to a round and fall silent in it."""
    return {2 * number % CLIENTS + 1, (2 * number + 1) % CLIENTS + 1}


def pooled(training, rounds):
    bill = Bill()
    bill.bytes = training.features.nbytes + training.labels.nbytes
    with bill.on("server"):
        return bill, local_training(zeros(training.features.shape[1]), training, epochs=rounds)


def federated(sites, features, rounds):
    bill, model = Bill(), zeros(features)
    for number in range(rounds):
        updates = []
        for client in sorted(set(sites) - absent(number)):
            with bill.on("client"):
                trained = local_training(model, sites[client], epochs=1)
                updates.append({name: trained[name] - model[name] for name in model})
            bill.bytes += sum(array.nbytes for array in updates[-1].values())
        with bill.on("server"):
            model = {name: array + np.mean([u[name] for u in updates], axis=0) for name, array in model.items()}
    return bill, model


def secure(sites, config, model, rounds, update, step):
    """Rounds of real clients and a real server, each on its own bill."""
    bill = Bill()
    identities = {client: secagg.Identity.generate() for client in sites}
    roster = secagg.Roster({client: identity.public for client, identity in identities.items()})
    server = secagg.Server(config, roster=roster)
    clients = {
        client: secagg.Client(config, client, identity=own, roster=roster, history=secagg.MemoryHistory())
        for client, own in identities.items()
    }

    def on_client(number, client, call, *arguments, **named):
        with bill.on("client"):
            events = call(*arguments, **named)
        for event in events:
            if isinstance(event, secagg.ContributionNeeded) and client not in absent(number):
                with bill.on("client"):
                    mine = update(model, sites[client])
                on_client(number, client, clients[client].contribute, mine)
            elif isinstance(event, secagg.SendMessage):
                bill.bytes += len(event.data)
                with bill.on("server"):
                    server.receive(client, event.data)

    for number in range(rounds):
        with bill.on("server"):
            invitations = server.begin(model)
        for message in invitations:
            on_client(number, message.to, clients[message.to].begin, message.data, model=model)
        while server.phase is not secagg.Phase.FINISHED:
            with bill.on("server"):
                events = server.close_phase()
            for event in events:
                if isinstance(event, secagg.SendMessage):
                    on_client(number, event.to, clients[event.to].receive, event.data)
                elif isinstance(event, secagg.AggregationResult):
                    with bill.on("server"):
                        model = step(model, event.mean)
                    result = event
    return bill, model, result


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, small pictures")
    quick = parser.parse_args(arguments).quick
    rounds, gradient_rounds = (2, 4) if quick else (20, 100)
    training, test = split(load_digits() if quick else load_mnist(), test_fraction=0.2, seed=SEED)
    parts = dirichlet_partition(training.labels, clients=CLIENTS, alpha=1.0, seed=SEED, minimum=40)
    sites = {client: training.take(part) for client, part in enumerate(parts, 1)}
    start = zeros(training.features.shape[1])

    def config(privacy):
        return secagg.AggregationConfig.cross_silo(
            like=start, clients=CLIENTS, max_dropouts=2, max_colluders=1, privacy=privacy
        )

    def averaged(model, data):
        trained = local_training(model, data, epochs=1)
        return {name: trained[name] - model[name] for name in model}

    speed = {name: np.zeros_like(array) for name, array in start.items()}

    def descended(model, mean):
        for name, gradient in mean.items():
            speed[name] = np.float32(0.9) * speed[name] + gradient
        return {name: array - np.float32(0.5) * speed[name] for name, array in model.items()}

    unit = secagg.RecordLevel(
        clip_norm=1.0, epsilon=EPSILON, delta=DELTA, rounds=gradient_rounds, sampling_rate=0.1, records=len(training)
    )
    print("training in four ways ...", file=sys.stderr)
    bills = {"pooled": pooled(training, rounds), "federated": federated(sites, start["weight"].shape[0], rounds)}
    *bills["masked"], exact = secure(
        sites, config(secagg.NoPrivacy(clip_norm=100.0)), start, rounds, averaged,
        lambda model, mean: {name: array + mean[name] for name, array in model.items()},
    )  # fmt: skip
    *bills["masked and noised"], noised = secure(
        sites, config(unit), start, gradient_rounds,
        lambda model, data: per_record_gradients(model, data.features, data.labels), descended,
    )  # fmt: skip
    apart = max(float(np.abs(bills["masked"][1][name] - bills["federated"][1][name]).max()) for name in start)
    seen = {
        "pooled": ("every record", "anything"),
        "federated": ("every client's updates", "anything"),
        "masked": (f"sums of {len(exact.survivors)} clients", "anything"),
        "masked and noised": (
            f"noised sums of {len(noised.survivors)} clients",
            f"at most epsilon {noised.epsilon:.1f}, also to the server with {noised.config.max_colluders} client",
        ),
    }
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name, (bill, model) in bills.items():
        print(bill.row(name, model, test, *seen[name]))
    print(
        f"\n{len(training):,} records at {CLIENTS} clients, {config(unit).layout.length} parameters; {rounds} rounds, "
        f"{gradient_rounds} for the last row; two clients drop out of each. The masked model is the federated one to "
        f"within {apart:.0e}."
    )
    print("Eavesdroppers see what the server sees, unless the transport is encrypted; masked, they see random words.")


if __name__ == "__main__":
    main()

"""How unlike clients may be: Dirichlet alpha from 0.1 to 10, five strategies, and heads that stay with their clients.

Each strategy is tuned over three local rates on splits that are not reported. *Global* is the accuracy of the common
model on all test digits; *own* is the mean accuracy of what each client ends up with on test digits in its own
proportions: the one that counts for the client.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from secagg.datasets import Dataset, dirichlet_partition, load_digits, split

from .harness import add_output_options, publish, say
from .learners import Floats, Network, accuracy
from .strategies import Strategy, train, with_rate
from .utility import summary

ALPHAS = (0.1, 0.5, 1.0, 10.0)
CLIENTS, ROUNDS, HIDDEN = 10, 40, 32
RATES = (0.03, 0.1, 0.3)
TUNING_SEEDS = (900, 901)
STRATEGIES = {
    "FedAvg": Strategy(),
    "FedProx": Strategy(proximal=0.1),
    "FedAdam": Strategy(adam=0.03),
    "SCAFFOLD": Strategy(controls=True),
    "personal heads": Strategy(personal=True),
}


def deal(alpha: float, seed: int) -> tuple[list[Dataset], list[Dataset], Dataset]:
    """Training and test parts of each client, in the same proportions, and all test digits."""
    data = load_digits()
    parts = dirichlet_partition(data.labels, clients=CLIENTS, alpha=alpha, seed=seed, minimum=20)
    pairs = [split(data.take(part), test_fraction=0.25, seed=seed) for part in parts]
    tests = [test for _, test in pairs]
    everything = Dataset(
        name="digits",
        features=np.concatenate([test.features for test in tests]),
        labels=np.concatenate([test.labels for test in tests]),
        classes=data.classes,
    )
    return [training for training, _ in pairs], tests, everything


def scores(
    network: Network, models: Sequence[Floats], tests: Sequence[Dataset], everything: Dataset
) -> dict[str, float]:
    """Global and own accuracy."""

    def score(model: Floats, data: Dataset) -> float:
        return accuracy(network.scores(model, data.features.astype(np.float64)), data.labels)

    own = [score(model, test) for model, test in zip(models, tests, strict=True)]
    return {"own": float(np.mean(own)), "global": float(np.mean([score(model, everything) for model in models]))}


def run(strategy: Strategy, alpha: float, seed: int, rounds: int) -> tuple[dict[str, float], list[float]]:
    """One training; the curve is the own accuracy after each round."""
    clients, tests, everything = deal(alpha, seed)
    network = Network(clients[0].features.shape[1], clients[0].classes, HIDDEN)
    trained = train(
        network,
        clients,
        strategy,
        rounds=rounds,
        rng=np.random.default_rng(seed),
        watch=lambda models: scores(network, models, tests, everything)["own"],
    )
    return scores(network, trained.models, tests, everything), trained.curve


def measure(*, seeds: int, alphas: Sequence[float], rounds: int, rates: Sequence[float]) -> dict[str, Any]:
    """All strategies at all alphas."""
    facts: dict[str, Any] = {}
    for alpha in alphas:
        row: dict[str, Any] = {}
        for name, strategy in STRATEGIES.items():
            best = max(
                (with_rate(strategy, rate) for rate in rates),
                key=lambda tried: float(np.mean([run(tried, alpha, seed, rounds)[0]["own"] for seed in TUNING_SEEDS])),
            )
            results = [run(best, alpha, seed, rounds) for seed in range(seeds)]
            row[name] = {
                "rate": best.rate,
                "own": summary([result["own"] for result, _ in results]),
                "global": summary([result["global"] for result, _ in results]),
                "curve": [float(value) for value in np.mean([curve for _, curve in results], axis=0)],
            }
            say(f"alpha {alpha:g} {name}: own {row[name]['own']['mean']:.1f}, global {row[name]['global']['mean']:.1f}")
        facts[f"{alpha:g}"] = row
    return facts


def add_command(commands: Any) -> None:
    """Registers `heterogeneity`."""
    parser = commands.add_parser("heterogeneity", help="strategies on clients that are more and less alike")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="one alpha, one rate, three rounds, two seeds")
    add_output_options(parser)
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    if options.seeds < 2:
        raise ValueError(f"--seeds must be at least 2 for a standard error, got {options.seeds}")
    seeds, alphas, rounds, rates = (
        (2, ALPHAS[1:2], 3, RATES[:1]) if options.smoke else (options.seeds, ALPHAS, ROUNDS, RATES)
    )
    facts = {"clients": CLIENTS, "rounds": rounds, "seeds": seeds}
    publish(
        "heterogeneity", {**facts, "alphas": measure(seeds=seeds, alphas=alphas, rounds=rounds, rates=rates)}, options
    )
    return 0

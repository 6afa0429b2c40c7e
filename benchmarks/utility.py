"""What privacy costs in accuracy, on real data: pooled, alone, FedAvg, central noise, distributed noise, local noise.

Rules:

- Every method is tuned with the same budget, eight settings, on splits that are not reported. Private methods are tuned
  at epsilon 4 and keep their settings at the others; the distributed method takes over the central one's.
- Central and distributed noise are compared in pairs: same split, clients, batches, first weights, and a Gaussian of
  exactly the standard deviation that the shares add up to. A difference is given with its standard error.
- A width at which no safe ring exists says "refused".
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from dp import CapacityError, SkellamEvent, epsilon
from secagg import AggregationConfig, RecordLevel
from secagg.datasets import (
    Dataset,
    dirichlet_partition,
    load_digits,
    load_health_insurance,
    load_intrusion,
    load_mnist,
    load_thyroid,
    split,
)

from . import learners
from .harness import add_output_options, publish, say
from .learners import Floats, Network

DELTA = 1e-5
TUNED_EPSILON = 4.0
EPSILONS = (1.0, 2.0, 4.0, 8.0)
BITS = (12, 16, 21, 32)
TUNING_SEEDS = (900, 901, 902)
ROUNDS = 30  # of FedAvg
Setting = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One data set, its clients, its model and its score."""

    load: Callable[[], Dataset]
    network: Callable[[Dataset], Network]
    score: Callable[[Floats, Any], float]
    clients: int = 0  # 0: the data's own sites


def _linear(data: Dataset) -> Network:
    return Network(data.features.shape[1], data.classes)


TASKS = {
    "digits": Task(load=load_digits, network=_linear, score=learners.accuracy, clients=20),
    "mnist": Task(load=load_mnist, network=_linear, score=learners.accuracy, clients=20),
    "intrusion": Task(load=load_intrusion, network=_linear, score=learners.accuracy, clients=20),
    "insurance": Task(load=load_health_insurance, network=_linear, score=learners.auc),
    "thyroid": Task(load=load_thyroid, network=lambda data: Network(data.features.shape[1], 2, 32), score=learners.auc),
}


def _grid(**choices: Sequence[Any]) -> list[Setting]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


RATES = (0.03, 0.1, 0.3, 1.0)
DRAWS = ((0.03, 600), (0.3, 120))  # sampling rate and number of steps
GRIDS: dict[str, list[Setting]] = {
    "pooled": _grid(epochs=(20, 60), rate=RATES),
    "alone": _grid(epochs=(20, 60), rate=RATES),
    "fedavg": _grid(epochs=(1, 5), rate=RATES),
    "private": _grid(draw=DRAWS, clip=(0.5, 1.0), rate=(1.0, 2.0)),
    "local": _grid(draw=DRAWS, local_steps=(1, 5), rate=(0.1, 0.5)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One split of one task."""

    task: Task
    training: Dataset
    test: Dataset
    clients: tuple[Dataset, ...]
    network: Network
    seed: int

    def rng(self) -> np.random.Generator:
        """The same numbers for every method."""
        return np.random.default_rng(self.seed)

    def score(self, parameters: Floats) -> float:
        """On the test part."""
        scores = self.network.scores(parameters, self.test.features.astype(np.float64))
        return self.task.score(scores, self.test.labels)

    def config(self, setting: Setting, *, target: float, bits: int) -> AggregationConfig:
        """A tenth of the clients may vanish, a tenth may collude."""
        count = len(self.clients)
        return AggregationConfig.cross_silo(
            like={"w": np.zeros(self.network.length)},
            clients=count,
            max_dropouts=count // 10,
            max_colluders=count // 10,
            privacy=self.unit(setting, target=target),
            modulus_bits=bits,
        )

    def unit(self, setting: Setting, *, target: float) -> RecordLevel:
        """One record, over all steps."""
        rate, steps = setting["draw"]
        return RecordLevel(
            clip_norm=setting.get("clip", 0.5),
            epsilon=target,
            delta=DELTA,
            rounds=steps,
            sampling_rate=rate,
            records=len(self.training),
        )


def make_case(task: Task, data: Dataset, seed: int) -> Case:
    """Splits and deals."""
    training, test = split(data, test_fraction=0.2, seed=seed)
    if task.clients:
        parts = dirichlet_partition(training.labels, clients=task.clients, alpha=0.5, seed=seed, minimum=10)
        clients = tuple(training.take(part) for part in parts)
    else:
        clients = tuple(training.by_site().values())
    return Case(task=task, training=training, test=test, clients=clients, network=task.network(data), seed=seed)


def run_pooled(case: Case, setting: Setting) -> float:
    """All data in one place."""
    rng = case.rng()
    start = case.network.start(rng)
    return case.score(learners.local_sgd(case.network, start, case.training, rng=rng, **setting))


def run_alone(case: Case, setting: Setting) -> float:
    """Each client by itself; the mean over clients."""
    rng = case.rng()
    start = case.network.start(rng)
    models = [learners.local_sgd(case.network, start, client, rng=rng, **setting) for client in case.clients]
    return float(np.mean([case.score(model) for model in models]))


def run_fedavg(case: Case, setting: Setting) -> float:
    """FedAvg, no privacy."""
    return case.score(
        learners.federated_averaging(case.network, case.clients, rounds=ROUNDS, rng=case.rng(), **setting)
    )


def run_private(case: Case, setting: Setting, *, target: float = TUNED_EPSILON, bits: int | None = None) -> float:
    """Distributed noise in a ring of `bits`, or central noise if None."""
    config = case.config(setting, target=target, bits=bits or 32)
    if bits is None:
        aggregate = learners.central(config, np.random.default_rng([case.seed, 1]))
    else:
        aggregate = learners.distributed(config)
    return case.score(
        learners.federated_sgd(case.network, case.clients, config, aggregate, rate=setting["rate"], rng=case.rng())
    )


def run_local(case: Case, setting: Setting, *, target: float = TUNED_EPSILON) -> float:
    """The whole noise at every client."""
    unit = case.unit(setting, target=target)
    return case.score(
        learners.local_sgd_with_noise(
            case.network,
            case.clients,
            unit,
            local_multiplier(unit),
            local_steps=setting["local_steps"],
            rate=setting["rate"],
            rng=case.rng(),
        )
    )


def local_multiplier(unit: RecordLevel) -> float:
    """The least noise, over the clip norm, with which one client alone keeps the budget; to a thousandth."""
    bound = 100_000

    def spent(multiplier: float) -> float:
        event = SkellamEvent(
            l2_squared=Fraction(bound**2),
            l1=Fraction(bound**2),
            variance=Fraction(multiplier * bound) ** 2,
            dimension=1,
            sampling_rate=unit.exact_rate,
        )
        return epsilon({event: unit.rounds}, delta=unit.delta)

    low, high = 0.05, 1000.0
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= unit.epsilon else (middle, high)
    return high


RUNS: dict[str, Callable[[Case, Setting], float]] = {
    "pooled": run_pooled,
    "alone": run_alone,
    "fedavg": run_fedavg,
    "private": run_private,
    "local": run_local,
}


def tune(task: Task, data: Dataset, method: str, grid: Sequence[Setting], seeds: Sequence[int]) -> Setting:
    """The setting with the best mean score on splits that are not reported."""
    cases = [make_case(task, data, seed) for seed in seeds]
    return max(grid, key=lambda setting: float(np.mean([RUNS[method](case, setting) for case in cases])))


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean and its standard error."""
    return {"mean": float(np.mean(values)), "se": float(np.std(values, ddof=1) / math.sqrt(len(values)))}


def measure(name: str, *, seeds: int, grids: dict[str, list[Setting]], tuning: Sequence[int]) -> dict[str, Any]:
    """All methods on one task."""
    task = TASKS[name]
    data = task.load()
    settings = {}
    for method, grid in grids.items():
        settings[method] = tune(task, data, method, grid, tuning)
        say(f"{name}: {method} tuned to {settings[method]}")
    cases = [make_case(task, data, seed) for seed in range(seeds)]
    facts: dict[str, Any] = {
        "clients": len(cases[0].clients),
        "parameters": cases[0].network.length,
        "score": task.score.__name__,
        "seeds": seeds,
        "settings": settings,
    }
    for method in ("pooled", "alone", "fedavg"):
        facts[method] = summary([RUNS[method](case, settings[method]) for case in cases])
        say(f"{name}: {method} {facts[method]}")
    facts["private"] = {}
    for target in EPSILONS:
        # Differences are claimed at the tuned epsilon; the others show the trend.
        here = cases if target == TUNED_EPSILON else cases[: max(3, seeds // 4)]
        centre = [run_private(case, settings["private"], target=target) for case in here]
        row: dict[str, Any] = {"central": summary(centre)}
        row["local"] = summary([run_local(case, settings["local"], target=target) for case in here])
        for bits in BITS:
            try:
                here[0].config(settings["private"], target=target, bits=bits)
            except (CapacityError, ValueError) as refusal:
                row[str(bits)] = {"refused": str(refusal)}
                continue
            scores = [run_private(case, settings["private"], target=target, bits=bits) for case in here]
            differences = [own - other for own, other in zip(scores, centre, strict=True)]
            row[str(bits)] = {**summary(scores), "difference": summary(differences)}
        say(f"{name}: epsilon {target:g} {row}")
        facts["private"][f"{target:g}"] = row
    return facts


def add_command(commands: Any) -> None:
    """Registers `utility`."""
    parser = commands.add_parser("utility", help="accuracy on real data under every kind of noise")
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=20, help="splits that are reported, at epsilon 4")
    parser.add_argument("--smoke", action="store_true", help="one setting for each method, three splits")
    add_output_options(parser)
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    if options.seeds < 3:
        raise ValueError(f"--seeds must be at least 3 for a standard error, got {options.seeds}")
    grids = {method: grid[:1] if options.smoke else grid for method, grid in GRIDS.items()}
    tasks = {}
    for name in options.tasks:
        tasks[name] = measure(
            name,
            seeds=3 if options.smoke else options.seeds,
            grids=grids,
            tuning=TUNING_SEEDS[:1] if options.smoke else TUNING_SEEDS,
        )
    publish("utility", {"delta": DELTA, "settings_tried": len(grids["pooled"]), "tasks": tasks}, options)
    return 0

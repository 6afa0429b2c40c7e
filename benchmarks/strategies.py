"""Federated strategies whose every message fits a masked sum: FedAvg, FedProx, FedAdam, SCAFFOLD, personal heads.

`masked_mean` is the path of the library without masks (the sum is bit for bit the same): clip for range, integers,
the ring, the public divisor. What a strategy sends is one flat vector: SCAFFOLD appends its control variates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dp import secure_random
from secagg import AggregationConfig, NoPrivacy
from secagg.datasets import Dataset
from secagg.pipeline import finish, prepare
from secagg.sketch import NAME, ErrorFeedback, RandomCoordinates

from .learners import MOMENTUM, Floats, Network

CLIP_NORM = 10.0  # for range only: none of these updates comes near it
Mean = Callable[[list[Floats]], Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way to train.

    Attributes:
        rate: of the clients' SGD.
        epochs: local passes over the data in a round.
        proximal: weight of the pull towards the round's model (FedProx; Li et al., MLSys 2020).
        adam: rate of Adam at the server on the mean difference (FedAdam; Reddi et al., ICLR 2021); 0 for none.
        controls: control variates against client drift (SCAFFOLD, option II; Karimireddy et al., ICML 2020).
        personal: the last layer stays with its client.
    """

    rate: float = 0.1
    epochs: int = 1
    proximal: float = 0.0
    adam: float = 0.0
    controls: bool = False
    personal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The models after training, and what a client sent.

    Attributes:
        models: each client's model; all the same unless heads are personal.
        curve: what `watch` said after each round.
        bytes_up: bytes that one client sent in all its rounds, vectors alone.
    """

    models: list[Floats]
    curve: list[float]
    bytes_up: int


def masked_mean(length: int, clients: int, *, bits: int = 32) -> tuple[Mean, int]:
    """The mean as the library computes it, and the bytes of one vector."""
    config = AggregationConfig.cross_silo(
        like={"w": np.zeros(length)},
        clients=clients,
        max_dropouts=0,
        max_colluders=0,
        privacy=NoPrivacy(clip_norm=CLIP_NORM),
        modulus_bits=bits,
    )
    rand = secure_random()

    def mean(updates: list[Floats]) -> Floats:
        seed = rand(32) if config.rotation else b""
        words = [prepare({"w": update}, config, rand=rand, seed=seed) for update in updates]
        total = (np.sum(words, axis=0, dtype=np.uint64) % 2**bits).astype(np.uint32)
        return np.asarray(finish(total, config, survivors=range(clients), seed=seed).mean["w"], dtype=np.float64)

    return mean, config.upload_bytes


def train(
    network: Network,
    clients: Sequence[Dataset],
    strategy: Strategy,
    *,
    rounds: int,
    rng: np.random.Generator,
    bits: int = 32,
    keep: float = 1.0,
    watch: Callable[[list[Floats]], float] = lambda models: 0.0,
) -> Trained:
    """Trains over the clients' data, which stays with them; every client weighs the same."""
    shared = network.length - (_head(network) if strategy.personal else 0)
    model = network.start(rng)
    heads = [model[shared:].copy() for _ in clients]
    control = np.zeros(shared)
    controls = [np.zeros(shared) for _ in clients]
    memories = [ErrorFeedback() for _ in clients]
    moments = (np.zeros(shared), np.zeros(shared))
    parts = 2 if strategy.controls else 1
    length = math.ceil(keep * parts * shared)
    mean, vector_bytes = masked_mean(length, len(clients), bits=bits)
    curve = []
    for number in range(1, rounds + 1):
        sketch = RandomCoordinates({"w": np.zeros(parts * shared)}, keep=keep, seed=b"%d" % number)
        sent = []
        for index, client in enumerate(clients):
            start = np.concatenate([model[:shared], heads[index]])
            local, steps = _local(network, start, client, strategy, control - controls[index], shared, rng)
            heads[index] = local[shared:]
            update = local[:shared] - model[:shared]
            if strategy.controls:
                fresh = controls[index] - control - update / (steps * strategy.rate)
                update = np.concatenate([update, fresh - controls[index]])
                controls[index] = fresh
            sent.append(
                update if keep == 1 else memories[index].compress({"w": update}, sketch)[NAME].astype(np.float64)
            )
        arrived = mean(sent)
        if keep < 1:
            arrived = np.asarray(sketch.restore({NAME: arrived})["w"], dtype=np.float64)
        step, change = arrived[:shared], arrived[shared:]
        if strategy.controls:
            control = control + change
        if strategy.adam:
            moments = (0.9 * moments[0] + 0.1 * step, 0.99 * moments[1] + 0.01 * step**2)
            first, second = moments[0] / (1 - 0.9**number), moments[1] / (1 - 0.99**number)
            step = strategy.adam * first / (np.sqrt(second) + 1e-3)
        model[:shared] += step
        curve.append(watch([np.concatenate([model[:shared], head]) for head in heads]))
    models = [np.concatenate([model[:shared], head]) for head in heads] if strategy.personal else [model] * len(clients)
    return Trained(models=models, curve=curve, bytes_up=rounds * vector_bytes)


def _local(
    network: Network,
    start: Floats,
    data: Dataset,
    strategy: Strategy,
    correction: Floats,
    shared: int,
    rng: np.random.Generator,
) -> tuple[Floats, int]:
    """Local SGD of one client, and how many steps it took. Control variates assume plain steps: no momentum then."""
    parameters, velocity = start.copy(), np.zeros_like(start)
    momentum, steps = 0.0 if strategy.controls else MOMENTUM, 0
    features = data.features.astype(np.float64)
    for _ in range(strategy.epochs):
        order = rng.permutation(len(data))
        for first in range(0, len(data), 32):
            rows = order[first : first + 32]
            gradient = network.mean_gradient(parameters, features[rows], data.labels[rows])
            gradient[:shared] += strategy.proximal * (parameters[:shared] - start[:shared])
            if strategy.controls:
                gradient[:shared] += correction
            velocity = momentum * velocity + gradient
            parameters -= strategy.rate * velocity
            steps += 1
    return parameters, steps


def _head(network: Network) -> int:
    """Parameters of the last layer."""
    if not network.hidden:
        raise ValueError("a personal head needs a hidden layer before it")
    return network.classes * (network.hidden + 1)


def with_rate(strategy: Strategy, rate: float) -> Strategy:
    """The same at another local rate; without momentum steps are ten times shorter."""
    return replace(strategy, rate=10 * rate if strategy.controls else rate)

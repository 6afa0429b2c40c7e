"""Small models with closed-form per-record gradients, and the ways to train them that the utility table compares.

Federated training goes through the library's own integer path: secret Poisson draw, `IntegerEncoder` on each record,
one Skellam share for each client, the ring, `finish`. Masks are left out, for a sum without them is bit for bit the
same. Splits, batches and first weights come from a seeded generator, so that methods are compared in pairs; noise does
not. (In the library the batches are secret and come from the secure generator.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dp import poisson_draw, secure_random
from secagg import AggregationConfig, RecordLevel
from secagg.datasets import Dataset
from secagg.pipeline import finish, prepare

Floats = NDArray[np.float64]
MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class Network:
    """Softmax regression, or with `hidden` units one tanh layer before it; parameters are one flat vector."""

    features: int
    classes: int
    hidden: int = 0

    @property
    def length(self) -> int:
        """d, the number of parameters."""
        inner = self.hidden * (self.features + 1)
        return inner + self.classes * ((self.hidden or self.features) + 1)

    def start(self, rng: np.random.Generator) -> Floats:
        """First parameters: zero, but for a hidden layer, which must not be symmetric."""
        parameters = np.zeros(self.length)
        if self.hidden:
            inner = self.hidden * self.features
            parameters[:inner] = rng.normal(size=inner) / math.sqrt(self.features)
            outer = self.hidden * (self.features + 1)
            parameters[outer : outer + self.classes * self.hidden] = rng.normal(
                size=self.classes * self.hidden
            ) / math.sqrt(self.hidden)
        return parameters

    def scores(self, parameters: Floats, features: Floats) -> Floats:
        """Log-odds of each class, float64[n, classes]."""
        inputs = features
        if self.hidden:
            weights, bias, parameters = self._layer(parameters, self.hidden, self.features)
            inputs = np.tanh(features @ weights.T + bias)
        weights, bias, _ = self._layer(parameters, self.classes, inputs.shape[1])
        return inputs @ weights.T + bias

    def record_gradients(self, parameters: Floats, features: Floats, labels: NDArray[np.int64]) -> Floats:
        """The cross-entropy gradient of each record, float64[n, d]."""
        inputs, weights, errors = self._errors(parameters, features, labels)
        parts = [_outer(errors, inputs), errors]
        if self.hidden:
            inner = (errors @ weights) * (1 - inputs**2)
            parts = [_outer(inner, features), inner, *parts]
        return np.concatenate(parts, axis=1)

    def mean_gradient(self, parameters: Floats, features: Floats, labels: NDArray[np.int64]) -> Floats:
        """The mean of `record_gradients`, without making them."""
        inputs, weights, errors = self._errors(parameters, features, labels)
        errors /= len(labels)
        parts = [(errors.T @ inputs).ravel(), errors.sum(axis=0)]
        if self.hidden:
            inner = (errors @ weights) * (1 - inputs**2)
            parts = [(inner.T @ features).ravel(), inner.sum(axis=0), *parts]
        return np.concatenate(parts)

    def _errors(self, parameters: Floats, features: Floats, labels: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
        """What enters the last layer, its weights, and by how much its probabilities are off."""
        inputs = features
        if self.hidden:
            weights, bias, parameters = self._layer(parameters, self.hidden, self.features)
            inputs = np.tanh(features @ weights.T + bias)
        weights, bias, _ = self._layer(parameters, self.classes, inputs.shape[1])
        errors = _softmax(inputs @ weights.T + bias)
        errors[np.arange(len(labels)), labels] -= 1
        return inputs, weights, errors

    @staticmethod
    def _layer(parameters: Floats, outputs: int, inputs: int) -> tuple[Floats, Floats, Floats]:
        weights, bias, rest = np.split(parameters, [outputs * inputs, outputs * (inputs + 1)])
        return weights.reshape(outputs, inputs), bias, rest


def accuracy(scores: Floats, labels: NDArray[np.int64]) -> float:
    """Percent of records whose class has the highest score."""
    return 100 * float((scores.argmax(axis=1) == labels).mean())


def auc(scores: Floats, labels: NDArray[np.int64]) -> float:
    """Percent of (positive, negative) pairs in the right order, of two classes; ties count half."""
    odds = scores[:, 1] - scores[:, 0]
    _, ranks, counts = np.unique(odds, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    positives = int(labels.sum())
    negatives = len(labels) - positives
    above = float(middle[ranks][labels == 1].sum()) - positives * (positives + 1) / 2
    return 100 * above / (positives * negatives)


def local_sgd(
    network: Network,
    start: Floats,
    data: Dataset,
    *,
    epochs: int,
    rate: float,
    rng: np.random.Generator,
    batch: int = 32,
) -> Floats:
    """Ordinary minibatch SGD with momentum."""
    parameters, velocity = start.copy(), np.zeros_like(start)
    features = data.features.astype(np.float64)
    for _ in range(epochs):
        order = rng.permutation(len(data))
        for first in range(0, len(data), batch):
            rows = order[first : first + batch]
            velocity = MOMENTUM * velocity + network.mean_gradient(parameters, features[rows], data.labels[rows])
            parameters -= rate * velocity
    return parameters


def federated_averaging(
    network: Network,
    clients: Sequence[Dataset],
    *,
    rounds: int,
    epochs: int,
    rate: float,
    rng: np.random.Generator,
) -> Floats:
    """FedAvg without privacy, weighted by records (McMahan et al., AISTATS 2017); the last half of rounds averaged."""
    parameters = network.start(rng)
    sizes = [len(client) for client in clients]
    average = np.zeros_like(parameters)
    for number in range(rounds):
        models = [local_sgd(network, parameters, client, epochs=epochs, rate=rate, rng=rng) for client in clients]
        parameters = np.average(models, axis=0, weights=sizes)
        if number >= rounds // 2:
            average += parameters / (rounds - rounds // 2)
    return average


Aggregate = Callable[[list[Floats]], Floats]  # per-record gradients of each client's draw -> noised mean gradient


def federated_sgd(
    network: Network,
    clients: Sequence[Dataset],
    config: AggregationConfig,
    aggregate: Aggregate,
    *,
    rate: float,
    rng: np.random.Generator,
) -> Floats:
    """Private federated SGD with momentum over the planned rounds; the last half of rounds averaged."""
    if not isinstance(config.privacy, RecordLevel):
        raise ValueError("federated SGD protects records")
    parameters = network.start(rng)
    velocity, average = np.zeros_like(parameters), np.zeros_like(parameters)
    rounds = config.privacy.rounds
    features = [client.features.astype(np.float64) for client in clients]
    for number in range(rounds):
        gradients = []
        for client, inputs in zip(clients, features, strict=True):
            drawn = poisson_draw(len(client), rate=config.privacy.exact_rate, rand=rng.bytes)
            gradients.append(network.record_gradients(parameters, inputs[drawn], client.labels[drawn]))
        velocity = MOMENTUM * velocity + aggregate(gradients)
        parameters -= rate * velocity
        if number >= rounds // 2:
            average += parameters / (rounds - rounds // 2)
    return average


def distributed(config: AggregationConfig) -> Aggregate:
    """Integers, one share of noise for each client, the ring, the public denominator: what the library does."""
    rand = secure_random()

    def aggregate(gradients: list[Floats]) -> Floats:
        total = np.zeros(config.length, dtype=np.uint32)
        seed = rand(32) if config.rotation else b""
        for rows in gradients:
            integers = config.encoder.encode_records(rows, rand=rand, rotation=config.rotation_of(seed))
            assert config.mechanism is not None
            total += prepare(config.mechanism.privatize(integers, rand=rand, seed=seed), config, rand=rand, seed=seed)
        words = total & np.uint32(2**config.modulus_bits - 1)
        released = finish(words, config, survivors=range(config.clients), seed=seed)
        return np.asarray(released.mean["w"], dtype=np.float64)

    return aggregate


def central(config: AggregationConfig, rng: np.random.Generator) -> Aggregate:
    """A trusted curator: exact clipped sums and one Gaussian as wide as all shares together."""
    assert config.mechanism is not None
    stddev = config.noise_stddev(config.clients)

    def aggregate(gradients: list[Floats]) -> Floats:
        total = sum(clipped(rows, config.clip_norm).sum(axis=0) for rows in gradients)
        return np.asarray((total + rng.normal(size=config.length) * stddev) / config.denominator(config.clients))

    return aggregate


def local_sgd_with_noise(
    network: Network,
    clients: Sequence[Dataset],
    unit: RecordLevel,
    multiplier: float,
    *,
    local_steps: int,
    rate: float,
    rng: np.random.Generator,
) -> Floats:
    """Every client runs its own DP-SGD with the whole noise of its own guarantee; the models are averaged.

    `unit.rounds` counts local steps, `local_steps` of which make a round.
    """
    parameters = network.start(rng)
    average, stddev = np.zeros_like(parameters), multiplier * unit.clip_norm
    rounds = unit.rounds // local_steps
    features = [client.features.astype(np.float64) for client in clients]
    velocities = [np.zeros_like(parameters) for _ in clients]
    for number in range(rounds):
        models = []
        for client, inputs, velocity in zip(clients, features, velocities, strict=True):
            model = parameters.copy()
            for _ in range(local_steps):
                drawn = rng.random(len(client)) < unit.sampling_rate
                rows = network.record_gradients(model, inputs[drawn], client.labels[drawn])
                noisy = clipped(rows, unit.clip_norm).sum(axis=0) + rng.normal(size=network.length) * stddev
                velocity *= MOMENTUM
                velocity += noisy / (unit.sampling_rate * len(client))
                model -= rate * velocity
            models.append(model)
        parameters = np.average(models, axis=0, weights=[len(client) for client in clients])
        if number >= rounds // 2:
            average += parameters / (rounds - rounds // 2)
    return average


def clipped(rows: Floats, clip_norm: float) -> Floats:
    """Each row scaled down to the norm."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return np.asarray(rows * np.minimum(1.0, clip_norm / np.maximum(norms, 1e-300))[:, None])


def _outer(left: Floats, right: Floats) -> Floats:
    """The outer product of each pair of rows, flat."""
    return np.asarray((left[:, :, None] * right[:, None, :]).reshape(len(left), left.shape[1] * right.shape[1]))


def _softmax(scores: Floats) -> Floats:
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))

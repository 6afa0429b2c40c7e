"""Weights, example counts and training metrics ride in the masked vector: in the same clip, under the same noise.

A number sent beside the vector would be seen by the server for each client and would be a release that nobody accounts.

- A contribution is (w u, v w, v w m_1, v w m_2, ...): update u, weight w in [0, 1], metrics m in [-1, 1]. The weight
  comes first and the clip after, so one client moves the whole vector by at most `clip_norm` times sqrt(1 + 1/16),
  whatever its weight: v is such that all riders together have at most a quarter of the clip norm. That costs 3 % more
  noise, once, however many ride.
- Public weights are part of the configuration; the sum is divided by the public sum of the survivors' weights. Private
  weights ride: the sum is divided by their noised sum, which is post-processing of one release.
- Values beyond the agreed range count as its nearest end. Nothing is divided by less than the noise of the divisor.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dp import UnsafeUpdateError
from dp.samplers import FloatVector

from .layout import Arrays

NORM = 0.25  # of all riders together, over the clip norm


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateWeights:
    """Every client weighs its update by a number of its own that nobody sees, such as how many examples it has.

    Attributes:
        largest: public cap on a weight, finite and > 0; a larger weight counts as this one. Also the scale: noise on
            the sum of weights is proportional to it.

    Raises:
        ValueError: `largest` is not finite and positive.
    """

    largest: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.largest) and self.largest > 0):
            raise ValueError(f"largest must be finite and > 0, got {self.largest!r}")


Weights = Mapping[int, float] | PrivateWeights | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """An update with what rides along.

    Attributes:
        update: the named arrays of the update.
        weight: with `PrivateWeights` this client's weight, >= 0.
        metrics: for each agreed name this client's value; with `RecordLevel` one value per record.
    """

    update: Arrays
    weight: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Riders:
    """What rides beside the update, as agreed before the round.

    Attributes:
        weights: the public weight of each client, by id; the cap on private ones; or None: all weigh the same.
        metrics: name, least and largest value of each metric, in the order of their coordinates.
    """

    weights: tuple[tuple[int, float], ...] | PrivateWeights | None = None
    metrics: tuple[tuple[str, float, float], ...] = ()

    @classmethod
    def of(cls, weights: Weights, metrics: Mapping[str, tuple[float, float]]) -> Riders:
        """Riders from what users write.

        Raises:
            ValueError: a weight is not finite and positive, or a range is empty or not finite; says which.
        """
        ranges = []
        for name, (least, largest) in metrics.items():
            if not (math.isfinite(least) and math.isfinite(largest) and least < largest):
                raise ValueError(f"metric {name!r} needs a finite range with least < largest, got ({least}, {largest})")
            ranges.append((str(name), float(least), float(largest)))
        if weights is None or isinstance(weights, PrivateWeights):
            return cls(weights, tuple(ranges))
        for client, weight in weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"the weight of client {client} must be finite and > 0, got {weight!r}")
        return cls(tuple((int(client), float(weights[client])) for client in sorted(weights)), tuple(ranges))

    @property
    def count(self) -> int:
        """How many coordinates they take."""
        return len(self.metrics) + isinstance(self.weights, PrivateWeights)

    def total_norm(self, clip_norm: float) -> float:
        """L2 bound of a clipped update with its riders."""
        return clip_norm * math.sqrt(1 + NORM**2) if self.count else clip_norm

    def unit(self, clip_norm: float) -> float:
        """v: what a weight of one, or a metric at the end of its range, is worth in units of the update."""
        return clip_norm * NORM / math.sqrt(self.count)

    def require_weights(self, clients: Iterable[int]) -> None:
        """Refuses clients without a weight where weights are public.

        Raises:
            ValueError: names them.
        """
        if isinstance(self.weights, tuple):
            missing = sorted(set(clients) - {client for client, _ in self.weights})
            if missing:
                raise ValueError(f"clients {missing} have no public weight")

    def least_divisor(self, survivors: float) -> float:
        """What a weighted sum over that many clients is divided by, at the lightest public weights."""
        if not isinstance(self.weights, tuple):
            return survivors
        lightest = sorted(weight for _, weight in self.weights)
        return math.fsum(lightest[: int(survivors)]) / lightest[-1]

    def share_of(self, client: int | None, weight: float | None) -> float:
        """w, in [0, 1]: this client's weight over the largest.

        Raises:
            UnsafeUpdateError: a weight is missing, not wanted, negative or not finite.
        """
        if isinstance(self.weights, PrivateWeights):
            if weight is None or not (math.isfinite(weight) and weight >= 0):
                raise UnsafeUpdateError(f"the configuration has private weights: one >= 0 is needed, got {weight!r}")
            return min(float(weight) / self.weights.largest, 1.0)
        if weight is not None:
            raise UnsafeUpdateError(f"the configuration has no private weights, got weight {weight!r}")
        if self.weights is None:
            return 1.0
        public = dict(self.weights)
        if client not in public:
            raise UnsafeUpdateError(f"client {client} has no public weight")
        return public[client] / max(public.values())

    def positions(self, metrics: Mapping[str, Any], shape: tuple[int, ...]) -> list[FloatVector]:
        """Each metric mapped to [-1, 1], in order. Of a record nan stays nan: it must not decide about the others.

        Raises:
            UnsafeUpdateError: a name is missing or unknown, values are not of `shape`, or a client's own value is nan.
        """
        names = {name for name, _, _ in self.metrics}
        if set(metrics) != names:
            missing, unknown = sorted(names - set(metrics)), sorted(set(metrics) - names)
            raise UnsafeUpdateError(f"the metrics are not those agreed: missing {missing}, unknown {unknown}")
        positions = []
        for name, least, largest in self.metrics:
            values = np.asarray(metrics[name], dtype=np.float64)
            if values.shape != shape or (values.ndim == 0 and np.isnan(values)):
                raise UnsafeUpdateError(
                    f"metric {name!r} must be numbers of shape {list(shape)}, got {metrics[name]!r}"
                )
            half = largest / 2 - least / 2
            positions.append((np.clip(values, least, largest) - least) / half - 1)
        return positions

    def read(
        self, riding: FloatVector, *, survivors: Collection[int], denominator: float, clip_norm: float, stddev: float
    ) -> tuple[float, float | None, dict[str, float]]:
        """What the summed riders say.

        Args:
            riding: float64[count], the sum of the riders' coordinates.
            survivors: whose contributions are in it.
            denominator: what an unweighted sum is divided by: a public number.
            clip_norm: of the update.
            stddev: of the noise on each coordinate, in units of the update; at least one integer step.

        Returns:
            The number that the summed update is divided by; the sum of weights in the user's units, if there are
            weights; and the (weighted) mean of each metric.
        """
        total: float | None = None
        if isinstance(self.weights, PrivateWeights):
            unit = self.unit(clip_norm)
            denominator = max(float(riding[0]), stddev) / unit
            total = float(riding[0]) / unit * self.weights.largest
        elif self.weights is not None:
            public = dict(self.weights)
            total = math.fsum(public[client] for client in survivors)
            denominator = total / max(public.values())
        means = {}
        for (name, least, largest), value in zip(self.metrics, riding[self.count - len(self.metrics) :], strict=True):
            position = float(value) / self.unit(clip_norm) / denominator
            means[name] = least + (min(max(position, -1.0), 1.0) + 1) * (largest / 2 - least / 2)
        return denominator, total, means

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        weights: Any = self.weights
        if isinstance(weights, PrivateWeights):
            weights = {"private": {"largest": float(weights.largest)}}
        elif weights is not None:
            weights = {"public": [list(pair) for pair in weights]}
        return {"weights": weights, "metrics": [list(metric) for metric in self.metrics]}


NO_RIDERS = Riders()

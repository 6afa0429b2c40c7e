"""The ground on which attacks meet defences: honest clients, five ways to protect them, one real round each.

| defence | what the adversary gets |
|---|---|
| `plain` | each client's update (FedAvg) |
| `masked` | the exact sum, through real masks; nothing binds the model |
| `local` | each client's update, with the whole noise added by the client itself |
| `noised` | the sum, masked, with distributed noise of the same size |
| `bound` | as `noised`; clients bind the model into the round and look at it before they train |

Noise is that of one round at `EPSILON`, `DELTA`: about the size of the clip norm on the sum, or on each local update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dp import ClientLevel, FloatVector, NoPrivacy, secure_random
from protocols import PolicyRefusal

from ..config import AggregationConfig
from ..layout import Arrays
from ..linter import refuse_planted
from .inconsistency import send_two_models
from .views import Parties, PlainView, RoundViews, SumView, flat, observe

DEFENCES = ("plain", "masked", "local", "noised", "bound")
EPSILON, DELTA = 4.4, 1e-5
_HEADROOM = 1.01  # above the largest norm, so that clipping and its room for rounding change nothing


def config_for(
    like: Arrays,
    defence: str,
    *,
    clients: int,
    clip_norm: float,
    epsilon: float = EPSILON,
    rounds: int = 1,
    max_dropouts: int = 0,
    max_colluders: int = 1,
) -> AggregationConfig:
    """The configuration of a defence: without noise for `masked`, with distributed noise for the others."""
    privacy = (
        NoPrivacy(clip_norm=clip_norm)
        if defence == "masked"
        else ClientLevel(clip_norm=clip_norm, epsilon=epsilon, delta=DELTA, rounds=rounds)
    )
    return AggregationConfig.cross_silo(
        like=like,
        clients=clients,
        max_dropouts=max_dropouts,
        max_colluders=max_colluders,
        privacy=privacy,
    )


def clip_norm_of(updates: Mapping[int, Arrays], defence: str) -> float:
    """Without noise clipping only bounds the range; with noise it is the median norm, as in practice."""
    norms = [float(np.linalg.norm(flat(update))) for update in updates.values()]
    return max(norms) * _HEADROOM if defence == "masked" else float(np.median(norms)) + 1e-12


def sum_under(updates: Mapping[int, Arrays], defence: str, *, epsilon: float = EPSILON) -> RoundViews:
    """One real round of `masked`, `noised` or `bound` over clients 1 to n."""
    like, clip_norm = next(iter(updates.values())), clip_norm_of(updates, defence)
    return observe(updates, config_for(like, defence, clients=len(updates), clip_norm=clip_norm, epsilon=epsilon))


def local_view(update: Arrays, config: AggregationConfig) -> PlainView:
    """One client's update with the whole noise of the noised configuration, from the same mechanism.

    Raises:
        ValueError: the configuration has no noise.
    """
    if config.mechanism is None:
        raise ValueError("local noise needs a configuration with noise")
    honest = config.min_survivors - config.max_colluders
    alone = replace(config.mechanism, share_variance=config.mechanism.share_variance * honest)
    rand = secure_random()
    integers = alone.privatize(config.encoder.encode(config.layout.flatten(update), rand=rand), rand=rand).vector
    vector = config.encoder.decode(integers, denominator=1.0)
    return PlainView(vector=vector, noise_stddev=config.noise_stddev(honest))


def sums_seen(updates: Mapping[int, Arrays], defence: str, *, sample: int) -> list[SumView]:
    """What an attack on everybody's sum gets to see: one sum, or, unmasked, the updates one by one.

    Unmasked updates are independent; the first `sample` of them stand for all.
    """
    if defence in ("plain", "local"):
        chosen = [updates[client] for client in sorted(updates)[:sample]]
        if defence == "plain":
            return [PlainView(vector=flat(update)) for update in chosen]
        config = config_for(chosen[0], defence, clients=max(len(updates), 3), clip_norm=clip_norm_of(updates, defence))
        return [local_view(update, config) for update in chosen]
    return [sum_under(updates, defence).server]


def refusal_of_model(model: Arrays, clients: int) -> PolicyRefusal | None:
    """What clients that look at their model say to this one; None if they would train it."""
    config = config_for(model, "masked", clients=clients, clip_norm=1.0)
    attempt = send_two_models(dict.fromkeys(range(1, clients + 1), model), config, inspect=refuse_planted)
    refusals = [error for error in attempt.refusals.values() if isinstance(error, PolicyRefusal)]
    return refusals[0] if attempt.aborted and refusals else None


def clipped(vectors: np.ndarray, clip_norm: float) -> FloatVector:
    """Rows shortened to `clip_norm`, as clients do before they send."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    shortened: FloatVector = vectors * np.minimum(1.0, clip_norm / np.maximum(lengths, 1e-300))
    return shortened


def parties_for(config: AggregationConfig) -> Parties:
    """Clients 1 to n with their histories, for several rounds."""
    return Parties(config, clients=range(1, config.clients + 1))

"""Rows of the matrix about the published model: membership of records, and pictures of classes."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dp import NoPrivacy, RecordLevel

from ..adapters.torch import parameters_of
from ..config import AggregationConfig
from ..training import sum_cross_entropy, train
from .active import Cells, Ground, perceptron
from .arena import DELTA
from .chance import order, uniform
from .final_model import (
    Features,
    Labels,
    RecordKnowledge,
    class_picture,
    likelihood_ratio_scores,
    loss_scores,
)
from .outcome import Expectation, Outcome
from .pictures import digit_pictures
from .scoring import auc, auc_of_epsilon, cosine, true_positives
from .views import FinalModelView

_EPSILON = 2.0  # at which the bound on any test is well below 1
_CLIENTS, _ORDINARY, _CANARIES = 4, 160, 120
_SMALLEST_RATE = 0.1  # false positives at which the share of members found is reported


def published_model(ground: Ground) -> Cells:
    """Membership of mislabelled records (loss, likelihood ratio) and the picture of each class."""
    pictures = digit_pictures()
    drawn = order(len(pictures.labels), rand=os.urandom)
    features = pictures.images[drawn].astype(np.float32)
    labels = pictures.labels[drawn]
    ordinary, canaries = slice(0, _ORDINARY), slice(_ORDINARY, _ORDINARY + _CANARIES)
    wrong = (labels[canaries] + 1 + (9 * uniform((_CANARIES,), rand=os.urandom)).astype(np.int64)) % 10
    member = np.zeros(_CANARIES, dtype=bool)
    member[order(_CANARIES, rand=os.urandom)[: _CANARIES // 2]] = True
    start = perceptron(pictures, 64)

    def pool(chosen: Features, given: Labels) -> tuple[Features, Labels]:
        return np.concatenate([features[ordinary], chosen]), np.concatenate([labels[ordinary], given])

    def shadow(chosen: Features, given: Labels) -> nn.Module:
        return _descend(_fresh(start), *pool(chosen, given))

    trained = pool(features[canaries][member], wrong[member])
    knowledge = RecordKnowledge(
        features=features[canaries], labels=wrong, train=shadow, shadows=6 if ground.smoke else 16
    )
    models = {
        "plain": _descend(_fresh(start), *trained),
        "masked": _federated(start, trained, NoPrivacy(clip_norm=100.0), rounds=5 if ground.smoke else 8),
        "noised": _federated(
            start,
            trained,
            RecordLevel(
                clip_norm=0.5, epsilon=_EPSILON, delta=DELTA, rounds=10 if ground.smoke else 30, sampling_rate=0.5,
                records=len(trained[1]),
            ),
            rounds=10 if ground.smoke else 30,
        ),
    }  # fmt: skip
    rest = slice(_ORDINARY + _CANARIES, None)
    for defence, model in models.items():
        view = FinalModelView(model=model)
        noised = defence == "noised"
        for attack, scores in (
            ("membership in the final model, loss", loss_scores(view, knowledge)),
            ("membership in the final model, LiRA", likelihood_ratio_scores(view, knowledge, rand=os.urandom)),
        ):
            bound = auc_of_epsilon(_EPSILON, DELTA) if noised else 1.0
            error = float(np.sqrt(bound * (1 - bound) / (_CANARIES / 2)))
            found = true_positives(scores[member], scores[~member], at=_SMALLEST_RATE)
            yield (
                defence,
                Outcome(
                    attack=attack,
                    metric="area under the ROC curve, members against others",
                    value=auc(scores[member], scores[~member]),
                    prior=0.5,
                    threshold=min(bound + 2 * error, 1.0) if noised else 0.6,
                    expectation=Expectation.HOLDS if noised else Expectation.LEAKS,
                    note=f"{_CANARIES} digits with a wrong label, half of them trained on among {_ORDINARY} ordinary "
                    f"ones; no test passes {bound:.3f}" + (f" at epsilon {_EPSILON:g}" if noised else ""),
                    details={"true_positives_at_10_percent": found, "bound": bound},
                ),
            )
        means = [features[rest][labels[rest] == label].mean(axis=0) for label in range(10)]
        overall = features[rest].mean(axis=0)
        seen = [class_picture(view, label, start=overall) for label in range(10)]
        prior = float(np.mean([_likeness(overall, mean) for mean in means]))
        value = float(np.mean([_likeness(picture, mean) for picture, mean in zip(seen, means, strict=True)]))
        yield (
            defence,
            Outcome(
                attack="class inversion of the final model",
                metric="correlation with the mean picture of the class",
                value=value,
                prior=prior,
                threshold=prior + 0.03,
                expectation=Expectation.OPEN,
                note="what a class has in common is what a model learns; no defence here claims to hide it",
            ),
        )


def _fresh(model: nn.Module) -> nn.Module:
    """The same architecture and start."""
    import copy

    return copy.deepcopy(model)


def _descend(model: nn.Module, features: Features, labels: Labels) -> nn.Module:
    """Full-batch descent until the records are fitted, wrong labels included."""
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(inputs), targets))
        optimizer.step()
    return model


def _federated(
    start: nn.Module, records: tuple[Features, Labels], privacy: NoPrivacy | RecordLevel, *, rounds: int
) -> nn.Module:
    """The same records over four clients, through real rounds."""
    features, labels = records
    dealt = np.array_split(order(len(labels), rand=os.urandom), _CLIENTS)
    clients = {
        client: TensorDataset(torch.from_numpy(features[own]), torch.from_numpy(labels[own]))
        for client, own in enumerate(dealt, start=1)
    }
    config = AggregationConfig.cross_silo(
        like=parameters_of(start), clients=_CLIENTS, max_dropouts=0, max_colluders=1, privacy=privacy
    )
    make: Callable[[], nn.Module] = lambda: _fresh(start)  # noqa: E731
    result = train(
        make,
        clients,
        config,
        rounds=rounds,
        learning_rate=0.1 if isinstance(privacy, NoPrivacy) else 1.0,
        local_epochs=40,
        batch_size=16,
        loss=sum_cross_entropy,
    )
    return result.model


def _likeness(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two pictures."""
    return cosine(
        (first - first.mean()).ravel().astype(np.float64), (second - second.mean()).ravel().astype(np.float64)
    )

"""Attacks on the published model: was this record trained on, and what does a class look like?

Rules:

1. The final model is public whatever happened before: masking changes nothing here. Noise bounds membership, for it
   bounds everything that follows from the rounds.
2. `loss_scores` calls a record a member if the model fits it well. `likelihood_ratio_scores` compares that fit with
   models trained by the adversary on its own data with and without the record; the few records that a model remembers
   show only there. A weak attack makes a model look private: judge by the strong one, at small false-positive rates.
3. `class_picture` climbs to what the model takes for a class. It shows what the class has in common, which is what
   learning is for; that no defence here claims to hide it is said in the matrix.

Sources: Yeom et al. 2018 (loss); Carlini et al. 2022 ("Membership Inference Attacks From First Principles", arXiv
2112.03570), online form with a common variance; Fredrikson, Jha and Ristenpart 2015 (class inversion).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dp import FloatVector, RandomBytes

from .chance import order
from .views import FinalModelView

try:
    import torch
    from torch import nn
except ImportError as missing:
    raise ImportError("the red team needs PyTorch: pip install 'secagg[torch]'") from missing

Features = NDArray[np.floating]
Labels = NDArray[np.int64]
Train = Callable[[Features, Labels], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordKnowledge:
    """The records in question, and how the adversary trains models like the victim's.

    Attributes:
        features: float[n, ...], members and non-members, in the adversary's hands.
        labels: int64[n].
        train: `train(features, labels)` gives a model; half of the records are used for each shadow.
        shadows: how many, at least 4.

    Raises:
        ValueError: fewer than 4 shadows, or features and labels differ in number.
    """

    features: Features
    labels: Labels
    train: Train
    shadows: int = 16

    def __post_init__(self) -> None:
        if self.shadows < 4:
            raise ValueError(f"shadows = {self.shadows} is below 4: each record needs models with and without it")
        if len(self.features) != len(self.labels):
            raise ValueError(f"{len(self.features)} records with {len(self.labels)} labels")


def loss_scores(view: FinalModelView, knowledge: RecordKnowledge, *, rand: RandomBytes | None = None) -> FloatVector:
    """The logit of the model's confidence in each record's label: float64[n], larger for members."""
    return _confidence(view.model, knowledge.features, knowledge.labels)


def likelihood_ratio_scores(view: FinalModelView, knowledge: RecordKnowledge, *, rand: RandomBytes) -> FloatVector:
    """Log likelihood ratio of each record's confidence under shadow models with and without it: float64[n].

    Args:
        view: the published model.
        knowledge: records and training.
        rand: bytes that deal the records to the shadows.
    """
    count = len(knowledge.labels)
    confidence = np.empty((knowledge.shadows, count))
    inside = np.zeros((knowledge.shadows, count), dtype=bool)
    for first in range(0, knowledge.shadows, 2):
        shuffled = order(count, rand=rand)
        # Complementary halves: each record is in half of the shadows.
        for shadow, half in zip(range(first, knowledge.shadows), np.array_split(shuffled, 2), strict=False):
            inside[shadow, half] = True
            model = knowledge.train(knowledge.features[half], knowledge.labels[half])
            confidence[shadow] = _confidence(model, knowledge.features, knowledge.labels)
    observed = _confidence(view.model, knowledge.features, knowledge.labels)
    mean_in = _mean(confidence, inside)
    mean_out = _mean(confidence, ~inside)
    # One variance for all records: a handful of shadows cannot tell them apart.
    variance_in = float(np.mean(np.square(confidence - mean_in)[inside])) + 1e-12
    variance_out = float(np.mean(np.square(confidence - mean_out)[~inside])) + 1e-12
    scores: FloatVector = (observed - mean_out) ** 2 / variance_out - (observed - mean_in) ** 2 / variance_in
    return scores / 2


def class_picture(
    view: FinalModelView,
    label: int,
    *,
    start: NDArray[np.floating],
    rand: RandomBytes | None = None,
    steps: int = 150,
    pull: float = 0.3,
) -> NDArray[np.float64]:
    """What the model takes for `label`.

    Args:
        view: the published model.
        label: the class.
        start: the mean of public pictures, in [0, 1]; the search is pulled back to it.
        rand: not used; every attack takes it.
        steps: of the search.
        pull: weight of the squared distance to `start`.

    Returns:
        float64, of the shape of `start`, in [0, 1].
    """
    prior = torch.from_numpy(np.asarray(start, dtype=np.float32))[None]
    image = prior.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.02)
    for _ in range(steps):
        objective = nn.functional.cross_entropy(view.model(image), torch.tensor([label]))
        objective = objective + pull * (image - prior).square().sum()
        (image.grad,) = torch.autograd.grad(objective, image)
        optimizer.step()
        with torch.no_grad():
            image.clamp_(0, 1)
    picture: NDArray[np.float64] = image.detach()[0].numpy().astype(np.float64)
    return picture


def _confidence(model: nn.Module, features: Features, labels: Labels) -> FloatVector:
    """log(p / (1 - p)) of the true class, which is close to normal over models."""
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.from_numpy(np.asarray(features)).to(dtype)).double(), dim=1)
    true = logs[torch.arange(len(labels)), torch.from_numpy(labels)]
    rest = logs.clone()
    rest[torch.arange(len(labels)), torch.from_numpy(labels)] = -torch.inf
    confidence: FloatVector = (true - torch.logsumexp(rest, dim=1)).numpy()
    return confidence


def _mean(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> FloatVector:
    mean: FloatVector = np.where(chosen, values, 0).sum(axis=0) / np.maximum(chosen.sum(axis=0), 1)
    return mean

"""Gradient inversion: pictures back from the gradient that they caused.

Rules:
- The adversary knows the model that was sent out, the loss, and how many pictures went in; the view is its best
  estimate of the (sum of the) gradients. It never sees a picture, and its own random bytes only choose where to start.
- The match ignores the length of the gradient, so clipping, averaging and an unknown learning rate cost it nothing.
- It assumes one gradient step (FedSGD). An update after several local steps is attacked as if it were one step.
- A sum of gradients is attacked like one gradient of many pictures. That succeeds more often than is believed.
- It has no prior but smoothness and the pixel range. Compare it with `psnr(truth, mean picture of public data)`: below
  that, guessing is better than attacking. An adversary with a better prior does at least as well as the guess.

Sources: gradient matching, Zhu, Liu and Han 2019 ("Deep Leakage from Gradients"); cosine objective, signed Adam and
total variation, Geiping et al. 2020 ("Inverting Gradients"); labels, Zhao, Mopuri and Bilen 2020 ("iDLG").

Example, on your own model and one received update (`sent` and `received` are lists of arrays, as Flower has them)::

    update = [before - after for before, after in zip(sent, received)]
    knowledge = InversionKnowledge(
        model=model, loss=nn.functional.cross_entropy, input_shape=(1, 28, 28), labels=None, images=1
    )
    found = invert_gradient(update, knowledge, rand=os.urandom)
    print(psnr(private_image, found.images[0]))
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dp import FloatVector, RandomBytes

from .views import Observed, flat

try:
    import torch
    from torch import Tensor, nn
except ImportError as missing:
    raise ImportError("gradient inversion needs PyTorch: pip install 'secagg[torch]'") from missing

Images = NDArray[np.float64]

# Objective below which the gradient is explained up to rounding (float32 gradients end near 1e-15).
_EXPLAINED = 1e-12
# Total variation in the search itself, by number of the start: without it a smooth network is inverted exactly, but a
# convolution with ReLU has too many kinks to get past.
_EARLY_SMOOTHNESS = (0.0, 3e-3, 1e-2)
# Weights of the total variation that are tried in turn afterwards, spanning three decades.
_SMOOTHNESS = (3e-4, 3e-3, 3e-2, 3e-1)
_MAX_PSNR = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionKnowledge:
    """What the adversary knows besides its view.

    Attributes:
        model: The model that clients received, with its parameters; a copy in float64 and evaluation mode is attacked.
        loss: `loss(output, labels)` to a scalar tensor, mean or sum over the pictures.
        input_shape: Shape of one input, [h, w] last if it is a picture; pixels lie in [0, 1].
        labels: One class per picture, or None to infer them (cross-entropy and a final layer with bias only).
        images: Number of pictures k behind the view.

    Raises:
        ValueError: `images` or the shape is not positive, or there are not `images` labels.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    input_shape: tuple[int, ...]
    labels: tuple[int, ...] | None
    images: int

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images = {self.images} is below 1")
        if not self.input_shape or min(self.input_shape) < 1:
            raise ValueError(f"input_shape {self.input_shape} is not a shape of positive sizes")
        if self.labels is not None and len(self.labels) != self.images:
            raise ValueError(f"{len(self.labels)} labels for {self.images} images")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reconstruction:
    """What the adversary believes went in.

    Attributes:
        images: float64[k, *input_shape] in [0, 1], in no particular order beyond that of `labels`.
        labels: The class of each picture, given or inferred.
        objective: 1 - cosine between the gradient of `images` and the view: 0 explains it fully, 1 not at all.
    """

    images: Images
    labels: tuple[int, ...]
    objective: float


def invert_gradient(
    view: Observed, knowledge: InversionKnowledge, *, rand: RandomBytes, restarts: int = 3, iterations: int = 300
) -> Reconstruction:
    """Search for pictures whose gradient points along the view.

    Each start is matched by signed Adam (a third of the iterations, which gets past the kinks of ReLU) and polished by
    LBFGS; the first without a prior, the next ones, if it failed, with two weights of total variation in turn. The best
    of them is then smoothed by more and more total variation for as long as its gradient still
    explains the view as well as noise of the observed size allows (the discrepancy principle), so that the amount of
    smoothing adapts to the defence without knowing the truth.

    Small models run several times faster under `torch.set_num_threads(1)`; that choice belongs to the caller.

    Args:
        view: The gradient or any positive multiple of it: a view, or what was received (see `flat`), p numbers in the
            order of the model's trainable parameters.
        knowledge: What else the adversary knows.
        rand: Bytes for starting points.
        restarts: Starting points tried; the search ends early when one explains the view exactly.
        iterations: Optimiser steps per start and per smoothing weight.

    Raises:
        ValueError: The view has the wrong length, is not finite or is zero; `restarts` or `iterations` is below 1;
            labels are to be inferred without a final bias.
    """
    if restarts < 1 or iterations < 1:
        raise ValueError(f"restarts = {restarts} and iterations = {iterations} must be at least 1")
    target = _direction(view, knowledge)
    labels = infer_labels(view, knowledge, rand=rand) if knowledge.labels is None else knowledge.labels
    search = _Search(knowledge, labels, target, iterations)

    pictures = len(knowledge.input_shape) > 1
    best_images, best = search.run(search.start(rand), smoothness=0.0)
    for number in range(1, restarts):
        if best <= _EXPLAINED:
            break
        smoothness = _EARLY_SMOOTHNESS[number % len(_EARLY_SMOOTHNESS)] if pictures else 0.0
        images, objective = search.run(search.start(rand), smoothness=smoothness)
        if objective < best:
            best_images, best = images, objective

    if best > _EXPLAINED and pictures:
        # A fit of q pixels to p noisy coordinates hides q/p of the noise energy; the truth would hide none.
        spare = max(target.numel() - best_images.numel(), 0) / target.numel()
        bound = _unexplained(best) / spare if spare else _unexplained(best)
        for smoothness in _SMOOTHNESS:
            images, objective = search.run(best_images, smoothness=smoothness)
            if _unexplained(objective) <= bound:
                best_images, best = images, objective
    return Reconstruction(images=best_images.clamp(0, 1).numpy(), labels=tuple(labels), objective=best)


def infer_labels(view: Observed, knowledge: InversionKnowledge, *, rand: RandomBytes) -> tuple[int, ...]:
    """Guess the classes of the pictures from the gradient of the final bias, under cross-entropy.

    For one picture that gradient is `softmax - onehot`, negative at the true class alone (iDLG), whatever the scale.
    For k pictures it is the sum: class counts are read off after subtracting the model's mean softmax on random
    pictures, with the largest scale that leaves no count negative. That guess is good for an untrained model and if
    some class is absent.

    Args:
        view: As for `invert_gradient`.
        knowledge: As for `invert_gradient`; its `labels` are not read.
        rand: Bytes for the random pictures.

    Returns:
        `knowledge.images` classes, in increasing order.

    Raises:
        ValueError: The view is unusable, or the model's last parameter is not the bias of its outputs.
    """
    target = _direction(view, knowledge)
    model = _copy(knowledge.model)
    with torch.no_grad():
        outputs = torch.softmax(model(_uniform((64, *knowledge.input_shape), rand)), dim=-1).mean(dim=0)
    last = _trainable(model)[-1]
    if last.shape != outputs.shape:
        raise ValueError("labels can only be inferred from a final layer with a bias: give `labels`")
    bias = target[-last.numel() :]
    if knowledge.images == 1:
        return (int(bias.argmin()),)
    expected = knowledge.images * outputs
    scale = torch.where(bias > 0, expected / bias, math.inf).min().nan_to_num(posinf=0.0)
    counts = (expected - scale * bias).clamp(min=0)
    counts *= knowledge.images / counts.sum()
    whole = counts.floor()
    short = knowledge.images - int(whole.sum())
    whole[(counts - whole).argsort(descending=True)[:short]] += 1
    return tuple(torch.arange(len(whole)).repeat_interleave(whole.long()).tolist())


def psnr(truth: Images, guess: Images) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], capped at 100 dB (an exact match would be infinite).

    Above 20 dB a picture is recognisable, above 30 dB good. For the prior-only baseline, pass the mean picture of
    public data as the guess.

    Raises:
        ValueError: The shapes differ.
    """
    truth, guess = np.asarray(truth, dtype=np.float64), np.asarray(guess, dtype=np.float64)
    if truth.shape != guess.shape:
        raise ValueError(f"a truth of shape {truth.shape} cannot be compared with a guess of shape {guess.shape}")
    error = float(np.mean((truth - guess) ** 2))
    return min(-10 * math.log10(error), _MAX_PSNR) if error > 0 else _MAX_PSNR


def matched_psnr(truths: Images, guesses: Images) -> FloatVector:
    """PSNR of each truth against its own guess, under the assignment with the largest total.

    A sum has no order, so neither has its reconstruction. The assignment knows the truths: it favours the attack.

    Args:
        truths: float[k, ...] in [0, 1].
        guesses: float[m, ...], m >= k, same picture shape.

    Returns:
        float64[k] in dB, each at most 100.

    Raises:
        ValueError: There are fewer guesses than truths, or shapes differ.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    if len(guesses) < len(truths):
        raise ValueError(f"{len(guesses)} guesses for {len(truths)} truths")
    table = np.array([[psnr(truth, guess) for guess in guesses] for truth in truths])
    rows, columns = linear_sum_assignment(table, maximize=True)
    matched: FloatVector = table[rows, columns]
    return matched


class _Search:
    """One inversion problem: the adversary's copy of the model, the direction to match, the optimiser budget."""

    def __init__(self, knowledge: InversionKnowledge, labels: tuple[int, ...], target: Tensor, iterations: int) -> None:
        self._model = _copy(knowledge.model)
        self._parameters = _trainable(self._model)
        self._loss = knowledge.loss
        self._shape = (knowledge.images, *knowledge.input_shape)
        self._labels = torch.tensor(labels)
        self._target = target
        self._adam_steps = iterations // 3
        self._lbfgs_steps = iterations - self._adam_steps

    def start(self, rand: RandomBytes) -> Tensor:
        """Uniform random pictures."""
        return _uniform(self._shape, rand)

    def run(self, start: Tensor, *, smoothness: float) -> tuple[Tensor, float]:
        """Optimise from `start`; returns the pictures and 1 - cosine, or `start` and infinity if it diverged."""
        images = start.clone().requires_grad_()

        def closure() -> Tensor:
            objective = self._mismatch(images) + _outside(images)
            if smoothness:
                objective = objective + smoothness * _roughness(images)
            (images.grad,) = torch.autograd.grad(objective, images)
            return objective

        adam = torch.optim.Adam([images], lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(self._adam_steps, 1))
        for _ in range(self._adam_steps):
            closure()
            images.grad = torch.sign(images.grad) if images.grad is not None else None
            adam.step()
            schedule.step()
        lbfgs = torch.optim.LBFGS(
            [images],
            max_iter=self._lbfgs_steps,
            history_size=50,
            tolerance_grad=1e-14,
            tolerance_change=1e-18,
            line_search_fn="strong_wolfe",
        )
        lbfgs.step(closure)  # type: ignore[no-untyped-call]  # torch 2.13 leaves it unannotated
        objective = float(self._mismatch(images).detach())
        return (images.detach(), objective) if math.isfinite(objective) else (start, math.inf)

    def _mismatch(self, images: Tensor) -> Tensor:
        """1 - cosine, as half the squared distance of unit vectors: no cancellation near a perfect match."""
        loss = self._loss(self._model(images), self._labels)
        gradients = torch.autograd.grad(
            loss, self._parameters, create_graph=True, allow_unused=True, materialize_grads=True
        )
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        # The tiny constant keeps a vanishing gradient (all units dead) from dividing by zero.
        return (flat / (flat.square().sum() + 1e-60).sqrt() - self._target).square().sum() / 2


def _unexplained(objective: float) -> float:
    """Share of the view's energy that lies across the matched direction."""
    return 1 - max(1 - objective, 0.0) ** 2


def _outside(images: Tensor) -> Tensor:
    """How far pixels leave [0, 1]; zero at the truth, so it never pulls away from it."""
    return (torch.relu(-images) + torch.relu(images - 1)).square().mean()


def _roughness(images: Tensor) -> Tensor:
    """Total variation over the last two axes, relative to brightness: smoothing must not be had by fading."""
    variation = sum((images.diff(dim=axis).square() + 1e-6).sqrt().mean() for axis in (-1, -2))
    return variation / (images.square().mean() + 1e-6).sqrt()


def _copy(model: nn.Module) -> nn.Module:
    """A private float64 copy: the caller's model is never touched."""
    return copy.deepcopy(model).to("cpu", torch.float64).eval()


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a gradient lists, in order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _direction(view: Observed, knowledge: InversionKnowledge) -> Tensor:
    """The view as a unit vector, if it can be the gradient of this model."""
    expected = sum(parameter.numel() for parameter in _trainable(knowledge.model))
    vector = flat(view)
    if vector.shape != (expected,):
        raise ValueError(f"the view has shape {vector.shape}, the model's gradient ({expected},)")
    if not np.isfinite(vector).all():
        raise ValueError(f"the view has {np.count_nonzero(~np.isfinite(vector))} coordinates that are not finite")
    largest = np.abs(vector).max(initial=0.0)
    if largest == 0:
        raise ValueError("the view is zero everywhere: there is nothing to match")
    vector = vector / largest
    return torch.from_numpy(vector / np.linalg.norm(vector))


def _uniform(shape: tuple[int, ...], rand: RandomBytes) -> Tensor:
    """Uniform pixels in [0, 1) from the adversary's bytes, 32 bits each."""
    words = np.frombuffer(rand(4 * math.prod(shape)), dtype="<u4")
    return torch.from_numpy(words * 2.0**-32).reshape(shape)

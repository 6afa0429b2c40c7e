"""Rows of the matrix in which the server lies: about the model, or about who is a client."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from dp import FloatVector

from ..adapters.torch import parameters_of
from ..layout import Arrays
from .arena import DEFENCES, clip_norm_of, config_for, local_view, refusal_of_model, sum_under, sums_seen
from .chance import normal, order
from .imprint import expected_alone, imprint, imprint_model
from .inconsistency import dead_copy, send_two_models
from .linear import LinearKnowledge, invert_linear
from .outcome import Expectation, Outcome
from .pictures import Images, Pictures, fedsgd_update
from .scoring import best_psnr, closest
from .trap import trap, trap_model
from .views import PlainView, SumView, flat, observe

Cells = Iterator[tuple[str, Outcome]]

RECOGNISABLE, GOOD = 20.0, 30.0  # dB
_TOKEN_EPSILON = 50_000.0
_MARGIN = 2.0  # dB above the best guess
_LUCK = 0.1  # share of pictures that may pass by chance: the best of many guesses is taken


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ground:
    """What all experiments share.

    Attributes:
        pictures: private and public pictures, of one source.
        smoke: small and quick.
    """

    pictures: Pictures
    smoke: bool

    def deal(self, private: int) -> tuple[Pictures, Pictures]:
        """Disjoint private and public pictures, at random."""
        shuffled = order(len(self.pictures.labels), rand=os.urandom)
        return self.pictures.take(shuffled[:private]), self.pictures.take(shuffled[private : private + 200])


def perceptron(pictures: Pictures, hidden: int) -> nn.Module:
    """A fresh network with one hidden layer of ReLU."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pictures.side**2, hidden), nn.ReLU(), nn.Linear(hidden, pictures.classes)
    )


def one_picture_each(model: nn.Module, private: Pictures) -> dict[int, Arrays]:
    """What clients 1 to n send, one picture each; with a channel axis, for models that want one."""
    images = private.images[:, None]
    return {
        client: fedsgd_update(model, images[client - 1 : client], private.labels[client - 1 : client])
        for client in range(1, len(images) + 1)
    }


def imprint_dense(ground: Ground) -> Cells:
    """One planted model for everybody, read from the sum."""
    return _imprint(ground, sparse=False)


def imprint_sparse(ground: Ground) -> Cells:
    """The same, shaped for clipping and noise."""
    return _imprint(ground, sparse=True)


def _imprint(ground: Ground, *, sparse: bool) -> Cells:
    # Rounds cost clients squared times parameters: the second form makes its point with half the clients.
    clients, bins = (40, 256) if ground.smoke else (50 if sparse else 100, 256)
    private, public = ground.deal(clients)
    planted = imprint_model(public.images, bins=bins, classes=private.classes, sparse=sparse, rand=os.urandom)

    def read(view: SumView) -> Images:
        return imprint(view, planted, noise_stddev=view.noise_stddev)

    note = f"{clients} clients with one picture each, {bins} bins: {expected_alone(clients, bins):.0f} expected alone"
    name = f"imprint, {'sparse' if sparse else 'plain'}"
    yield from _planted(name, planted.model, private, public, read, note)
    if sparse:
        # Noise as such is no protection: at an epsilon that protects nobody the adaptive form reads on.
        view = sum_under(one_picture_each(planted.model, private), "noised", epsilon=_TOKEN_EPSILON).server
        scores, guess = best_psnr(private.images, read(view)), best_public(private, public)
        note = f"epsilon {_TOKEN_EPSILON:,.0f}. {note}"
        yield "noised", recovered(f"{name}, a token of noise", scores, guess, Expectation.LEAKS, note)


def trap_weights(ground: Ground) -> Cells:
    """One planted model with rarely firing units."""
    clients, units = (40, 300) if ground.smoke else (50, 256)
    private, public = ground.deal(clients)
    planted = trap_model(public.images, units=units, batch=clients, classes=private.classes, rand=os.urandom)
    note = f"{clients} clients with one picture each, {units} units"
    return _planted("trap weights", planted.model, private, public, lambda view: trap(view, planted), note)


def _planted(
    attack: str,
    model: nn.Module,
    private: Pictures,
    public: Pictures,
    read: Callable[[SumView], Images],
    note: str,
) -> Cells:
    """A malicious model that is the same for everybody."""
    updates, guess = one_picture_each(model, private), best_public(private, public)
    for defence in DEFENCES:
        expectation = Expectation.LEAKS if defence in ("plain", "masked") else Expectation.HOLDS
        if defence == "bound":
            refusal = refusal_of_model(parameters_of(model), clients=4)
            if refusal is not None:
                yield defence, recovered(attack, np.zeros_like(guess), guess, expectation, f"refused: {refusal}")
                continue
        views = sums_seen(updates, defence, sample=20)
        # One sum for all pictures, or for each picture the update that its client sent.
        truths = [private.images] if len(views) == 1 else np.split(private.images[: len(views)], len(views))
        read_off = [read(view) for view in views]
        scores = np.concatenate([best_psnr(truth, images) for truth, images in zip(truths, read_off, strict=True)])
        luck = np.concatenate(
            [best_psnr(truth, read(_silence(view))) for truth, view in zip(truths, views, strict=True)]
        )
        best = int(scores.argmax())
        shown = closest(private.images[best], read_off[best if len(views) > 1 else 0])
        images = (("the truth", private.images[best]), (f"{scores[best]:.1f} dB", shown))
        yield defence, recovered(attack, scores, np.maximum(guess[: len(scores)], luck), expectation, note, images)


def _silence(view: SumView) -> PlainView:
    """A view of the same noise and nothing else: as many guesses, none of them informed."""
    noise = view.noise_stddev * normal((len(view.vector),), rand=os.urandom)
    return PlainView(vector=noise, noise_stddev=view.noise_stddev, clients=view.clients)


def best_public(private: Pictures, public: Pictures) -> FloatVector:
    """PSNR of the best guess without a view: the closest public picture, or the mean of all."""
    return best_psnr(private.images, np.concatenate([public.images, public.images.mean(axis=0)[None]]))


def recovered(
    attack: str,
    scores: np.ndarray,
    guess: np.ndarray,
    expectation: Expectation,
    note: str,
    images: tuple[tuple[str, Images], ...] = (),
) -> Outcome:
    """How many pictures are recognisable and closer to the truth than the best guess."""
    better = (scores > RECOGNISABLE) & (scores > guess + _MARGIN)
    return Outcome(
        attack=attack,
        metric="share of pictures above 20 dB and 2 dB above the best guess",
        value=float(better.mean()),
        prior=0.0,
        threshold=_LUCK,
        expectation=expectation,
        note=note,
        images=images,
        details={
            "pictures": len(scores),
            "above_30_db": int((scores > GOOD).sum()),
            "above_20_db": int((scores > RECOGNISABLE).sum()),
            "guess_above_20_db": int((guess > RECOGNISABLE).sum()),
            "median_db": float(np.median(scores)),
        },
    )


def model_inconsistency(ground: Ground) -> Cells:
    """The victim trains the model, everybody else a dead one."""
    clients, hidden, victim = 16, 100, 3
    private, public = ground.deal(clients + 1)
    model = perceptron(private, hidden)
    dead = dead_copy(model)
    updates: dict[int, Arrays] = {
        client: fedsgd_update(
            model if client == victim else dead,
            private.images[client : client + 1],
            private.labels[client : client + 1],
        )
        for client in range(1, clients + 1)
    }
    layer = LinearKnowledge(units=hidden, inputs=private.side**2, images=1)
    truth = private.images[victim : victim + 1]
    prior = float(best_psnr(truth, public.images.mean(axis=0)[None])[0])

    def outcome(defence: str, value: float, note: str) -> Outcome:
        return Outcome(
            attack="model inconsistency",
            metric="PSNR of the victim's picture, dB",
            value=value,
            prior=prior,
            threshold=max(RECOGNISABLE, prior + 2),
            expectation=Expectation.LEAKS if defence in ("plain", "masked") else Expectation.HOLDS,
            note=note,
        )

    own = dict.fromkeys([victim], updates[victim])
    for defence in DEFENCES:
        if defence == "bound":
            config = config_for(updates[victim], defence, clients=clients, clip_norm=1.0)
            attempt = send_two_models(
                {client: parameters_of(model if client == victim else dead) for client in updates}, config
            )
            if attempt.aborted:
                error = attempt.refusals[victim]
                yield defence, outcome(defence, prior, f"round aborted: {type(error).__name__}: {error}")
                continue
        if defence == "plain":
            view: SumView = PlainView(vector=flat(updates[victim]))
        elif defence == "local":
            clip_norm = clip_norm_of(own, defence)
            view = local_view(
                updates[victim], config_for(updates[victim], defence, clients=clients, clip_norm=clip_norm)
            )
        else:
            # The victim's norm, not the median over dead updates: the attack loses nothing to clipping.
            config = config_for(updates[victim], defence, clients=clients, clip_norm=clip_norm_of(own, "masked"))
            view = observe(updates, config).server
        found = invert_linear(view, layer, rand=os.urandom).clip(0, 1)
        value = float(best_psnr(truth, found.reshape(-1, *truth.shape[1:]))[0])
        yield defence, outcome(defence, value, f"{clients} clients, dead units for all but one")

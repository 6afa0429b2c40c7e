"""Rows of the matrix in which the server sends an honest model and reads what comes back.

Binding and inspecting an honest model change nothing: the last column is that of `noised`.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import torch
from torch import nn

from dp import FloatVector
from protocols import PolicyRefusal

from ..adapters.torch import parameters_of
from ..layout import Arrays
from .active import RECOGNISABLE, Cells, Ground, best_public, one_picture_each, perceptron, recovered
from .arena import DEFENCES, clip_norm_of, clipped, config_for, local_view, parties_for, sum_under, sums_seen
from .chance import order, uniform
from .inversion import InversionKnowledge, infer_labels, invert_gradient
from .linear import LinearKnowledge, invert_linear
from .membership import Crowd, MembershipKnowledge, auc_bound, membership
from .outcome import Expectation, Outcome
from .pictures import Images, Pictures, fedsgd_update
from .rounds import difference, disaggregate
from .scoring import auc, best_psnr, closest, cosine, roc
from .views import Observed, PlainView, ServerView, SumView, flat, observe
from .words import EmbeddingKnowledge, word_scores

HONEST = tuple(defence for defence in DEFENCES if defence != "bound")
LEAKING, PROTECTING = Expectation.LEAKS, Expectation.HOLDS


def single_inversion(ground: Ground) -> Cells:
    """One client's one picture, from what carries its name."""
    clients, victim = 4, 1
    private, public = ground.deal(clients)
    model = perceptron(private, 32) if ground.smoke or private.side < 16 else convolution(private)
    updates = one_picture_each(model, private)
    knowledge = InversionKnowledge(
        model=model,
        loss=nn.functional.cross_entropy,
        input_shape=(1, private.side, private.side),
        labels=None,
        images=1,
    )
    config = config_for(updates[victim], "noised", clients=clients, clip_norm=clip_norm_of(updates, "noised"))
    views: dict[str, Observed] = {
        "plain": updates[victim],
        "masked": sum_under(updates, "masked").network.masked(victim),
        "local": local_view(updates[victim], config),
    }
    prior = float(best_psnr(private.images[:1], public.images.mean(axis=0)[None])[0])
    truth = private.images[0]
    found = {
        defence: invert_gradient(view, knowledge, rand=os.urandom, iterations=60 if ground.smoke else 150).images[:, 0]
        for defence, view in views.items()
    }
    found["noised"] = found["masked"]
    values = {defence: float(best_psnr(truth[None], images)[0]) for defence, images in found.items()}
    values["noised"] = values["masked"]  # what carries the client's name is masked as before
    for defence in HONEST:
        outcome = Outcome(
            attack="gradient inversion, one client",
            metric="PSNR of the victim's picture, dB",
            value=values[defence],
            prior=prior,
            threshold=max(RECOGNISABLE, prior + 2),
            expectation=LEAKING if defence == "plain" else PROTECTING,
            note="from its update, or from its masked vector where there are masks",
            images=(("the truth", truth), (f"{values[defence]:.1f} dB", closest(truth, found[defence]))),
        )
        yield defence, outcome


def sum_inversion(ground: Ground) -> Cells:
    """All pictures of a small cohort, from the sum: with every advantage, and after realistic local training."""
    clients = 4 if ground.smoke else 8
    # Digits whatever the ground: an exact sum of larger pictures takes minutes, not seconds.
    private, public = Ground(pictures=_small(ground.pictures), smoke=ground.smoke).deal(clients)
    model = nn.Sequential(nn.Flatten(), nn.Linear(private.side**2, 32), nn.Tanh(), nn.Linear(32, private.classes))
    prior = float(best_psnr(private.images, public.images.mean(axis=0)[None]).mean())

    def outcome(regime: str, updates: dict[int, Arrays], defence: str, expectation: Expectation) -> Outcome:
        alone = defence in ("plain", "local")
        view = sums_seen(updates, defence, sample=1)[0]
        labels = private.labels[:1] if alone else private.labels
        found = invert_gradient(
            view,
            InversionKnowledge(
                model=model,
                loss=nn.functional.cross_entropy,
                input_shape=(private.side, private.side),
                labels=tuple(labels.tolist()),
                images=len(labels),
            ),
            rand=os.urandom,
            restarts=2,
            iterations=100 if ground.smoke else 200,
        )
        return Outcome(
            attack=f"gradient inversion, sum, {regime}",
            metric="mean PSNR of the pictures, dB",
            value=(reached := float(best_psnr(private.images[: len(labels)], found.images).mean())),
            prior=prior,
            threshold=max(RECOGNISABLE, prior + 2),
            expectation=expectation,
            note=f"{clients} clients with one picture each, known labels, an untrained smooth model",
            images=(("the truth", private.images[0]), (f"{reached:.1f} dB", closest(private.images[0], found.images))),
        )

    step = one_picture_each(model, private)
    for defence in HONEST:
        yield defence, outcome("one step", step, defence, LEAKING if defence in ("plain", "masked") else PROTECTING)
    # What is easy to believe a protection: a crowd and a few epochs. Nothing is claimed of it.
    trained = {
        client: _local_training(model, private.images[client - 1 : client], private.labels[client - 1 : client])
        for client in step
    }
    yield "masked", outcome("ten local steps", trained, "masked", Expectation.OPEN)


def _local_training(model: nn.Module, images: Images, labels: np.ndarray) -> Arrays:
    """Ten steps of descent; the update as start minus end."""
    own, start = copy.deepcopy(model), parameters_of(model)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.5)
    inputs, targets = torch.from_numpy(images).float(), torch.from_numpy(labels)
    for _ in range(10):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(own(inputs), targets))
        optimizer.step()
    return {name: start[name] - array for name, array in parameters_of(own).items()}


def exact_linear(ground: Ground) -> Cells:
    """An honest fully-connected model, a few clients, whole batches exactly."""
    clients, hidden = (4, 200) if ground.smoke else (8, 400)
    private, public = ground.deal(clients)
    model = perceptron(private, hidden)
    updates, guess = one_picture_each(model, private), best_public(private, public)
    for defence in HONEST:
        views = sums_seen(updates, defence, sample=clients)
        found = [
            invert_linear(
                view,
                LinearKnowledge(units=hidden, inputs=private.side**2, images=view.clients),
                rand=os.urandom,
                tries=2_000 if view.noise_stddev else 20_000,
            ).clip(0, 1)
            for view in views
        ]
        scores = best_psnr(private.images, np.concatenate(found).reshape(-1, private.side, private.side))
        expectation = Expectation.LEAKS if defence in ("plain", "masked") else Expectation.HOLDS
        outcome = recovered(
            "exact inversion of a linear layer", scores, guess, expectation,
            f"sum of {clients} clients with one picture each, {hidden} units",
        )  # fmt: skip
        yield defence, outcome


def membership_in_a_sum(ground: Ground) -> Cells:
    """Which of two candidates each of 16 clients used; then the same with the server's own clients around it."""
    clients, rounds = 16, (6 if ground.smoke else 12)
    pictures = _small(ground.pictures)
    model = perceptron(pictures, 32)
    shuffled = order(len(pictures.labels), rand=os.urandom)[:1600]
    gradients = np.stack(
        [flat(fedsgd_update(model, pictures.images[i : i + 1], pictures.labels[i : i + 1])) for i in shuffled]
    )
    clip_norm = float(np.median(np.linalg.norm(gradients, axis=1)))
    gradients = clipped(gradients, 0.99 * clip_norm)
    crowd, candidates = Crowd.of(gradients[:900]), gradients[900:]
    like = {"update": gradients[0]}
    # name of the row -> colluders assumed by the configuration, and there
    rows = {
        f"membership, {clients} clients": (1, 0),
        "membership, as many sybils as assumed": (clients // 2, clients // 2),
        "membership, all others sybils": (1, clients - 1),
    }
    for attack, (assumed, present) in rows.items():
        for defence in HONEST:
            config = config_for(like, "noised" if defence in ("plain", "local") else defence, clients=clients,
                                clip_norm=clip_norm, max_colluders=assumed)  # fmt: skip
            scores: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(rounds if present < clients - 1 else 2 * rounds):
                drawn = candidates[order(len(candidates), rand=os.urandom)[: 2 * clients]]
                first, second = drawn[:clients], drawn[clients:]
                coins = uniform((clients,), rand=os.urandom) < 0.5
                sent = {
                    client: {"update": (first if coins[client - 1] else second)[client - 1]}
                    for client in range(1, clients + 1)
                }
                honest = range(clients - present)
                if defence in ("plain", "local"):
                    for index in honest:
                        update = sent[index + 1]
                        alone: SumView = (
                            PlainView(vector=flat(update)) if defence == "plain" else local_view(update, config)
                        )
                        pair = MembershipKnowledge(
                            first=first[index : index + 1], second=second[index : index + 1], crowd=crowd
                        )
                        scores[bool(coins[index])].append(float(membership(alone, pair)[0]))
                    view = alone
                else:
                    seen = observe(sent, config, colluders=range(clients - present + 1, clients + 1))
                    view = seen.sybils
                    pairs = MembershipKnowledge(first=first[: len(honest)], second=second[: len(honest)], crowd=crowd)
                    for index, score in enumerate(membership(view, pairs)):
                        scores[bool(coins[index])].append(float(score))
            beyond = present > assumed and defence != "local"  # local noise does not depend on others
            yield defence, _membership_outcome(attack, scores, 2 * clip_norm, view, beyond)


def _membership_outcome(
    attack: str, scores: dict[bool, list[float]], sensitivity: float, view: SumView, beyond: bool
) -> Outcome:
    """Against the bound that the noise gives, with two standard errors for the number of trials."""
    first, second = np.array(scores[True]), np.array(scores[False])
    bound = auc_bound(sensitivity, view.noise_stddev)
    error = np.sqrt(bound * (1 - bound) / min(len(first), len(second)))
    noised = view.noise_stddev > 0 and not beyond
    return Outcome(
        attack=attack,
        metric="area under the ROC curve, which of two candidates",
        value=auc(first, second),
        prior=0.5,
        threshold=float(min(bound + 2 * error, 1.0)) if noised else 0.7,
        expectation=PROTECTING if noised else LEAKING,
        note=f"{len(first) + len(second)} trials; no test passes {bound:.3f} under this noise"
        + ("; more clients collude than the noise is calibrated for" if beyond and view.noise_stddev > 0 else ""),
        details={"bound": bound, "trials": len(first) + len(second)},
        curve=roc(first, second),
    )


def several_rounds(ground: Ground) -> Cells:
    """Differencing of two rounds, and disaggregation of many by who took part."""
    yield from _differencing(ground)
    yield from _disaggregation(ground)


def _differencing(ground: Ground) -> Cells:
    clients, victim = 8, 8
    private, public = Ground(pictures=_small(ground.pictures), smoke=ground.smoke).deal(clients)
    model = perceptron(private, 32)
    updates = one_picture_each(model, private)
    truth = flat(updates[victim])
    prior = cosine(flat(fedsgd_update(model, public.images, public.labels)), truth)
    same = parameters_of(model)
    # One unit in the last place: another model to every digest, the same one to every gradient.
    nudged = {name: np.nextafter(array, np.float32(np.inf), dtype=array.dtype) for name, array in same.items()}
    for defence in HONEST:
        note = "the second round drops the victim, on a model that differs in the last bit"
        if defence in ("plain", "local"):
            found = flat(sums_seen({1: updates[victim], 2: updates[1], 3: updates[2]}, defence, sample=1)[0])
            note = "the victim's own update"
        else:
            config = config_for(
                updates[1], defence, clients=clients, clip_norm=clip_norm_of(updates, defence), rounds=2, max_dropouts=1
            )
            parties = parties_for(config)
            whole = observe(updates, config, model=same, simulation=parties).server
            if defence == "masked":
                note += "; on the very same model: " + _second_round(updates, config, same, victim, parties)
            part = observe(updates, config, model=nudged, drop={victim}, simulation=parties).server
            found = difference((whole, part))
        outcome = Outcome(
            attack="differencing of two rounds",
            metric="cosine to the victim's update",
            value=cosine(found, truth),
            prior=max(prior, 0.0),
            threshold=max(prior, 0.0) + 0.2,
            expectation=LEAKING if defence in ("plain", "masked") else PROTECTING,
            note=note,
        )
        yield defence, outcome


def _second_round(updates: dict[int, Arrays], config: Any, model: Arrays, victim: int, parties: Any) -> str:
    """What clients say to a second round, less one client, on the same model."""
    try:
        observe(updates, config, model=model, drop={victim}, simulation=parties)
    except PolicyRefusal as refusal:
        return f"refused ({refusal})"
    return "not refused"


def _disaggregation(ground: Ground) -> Cells:
    clients, absent, rounds, batch = 12, 3, (16 if ground.smoke else 30), 8
    pictures = _small(ground.pictures)
    model = perceptron(pictures, 16)
    by_class = [np.flatnonzero(pictures.labels == label) for label in range(pictures.classes)]
    owned = [
        np.concatenate([by_class[c % len(by_class)][:40], by_class[(c + 1) % len(by_class)][40:60]])
        for c in range(clients)
    ]
    whole = np.stack([flat(fedsgd_update(model, pictures.images[i], pictures.labels[i])) for i in owned])
    average = whole.mean(axis=0)
    prior = float(np.mean([cosine(average, truth) for truth in whole]))
    ids = range(1, clients + 1)

    def batches() -> dict[int, Arrays]:
        drawn = [i[order(len(i), rand=os.urandom)[:batch]] for i in owned]
        return {
            client: fedsgd_update(model, pictures.images[i], pictures.labels[i])
            for client, i in zip(ids, drawn, strict=True)
        }

    for defence in HONEST:
        if defence in ("plain", "local"):
            continue  # every update carries its client's name: there is nothing to disaggregate
        clip_norm = 1.2 * float(np.linalg.norm(whole, axis=1).max())
        config = config_for(
            batches()[1], defence, clients=clients, clip_norm=clip_norm, epsilon=2 * 4.4, rounds=rounds,
            max_dropouts=absent,
        )  # fmt: skip
        parties = parties_for(config)
        views: list[ServerView] = []
        for number in range(rounds):
            # Each round has its own model, as in training; it hardly moves, which favours the attack.
            state = {name: array * np.float32(1 - 1e-4 * number) for name, array in parameters_of(model).items()}
            gone = {int(client) + 1 for client in order(clients, rand=os.urandom)[:absent]}
            views.append(observe(batches(), config, model=state, drop=gone, simulation=parties).server)
        found = disaggregate(views, ids)
        outcome = Outcome(
            attack="disaggregation by participation",
            metric="mean cosine to a client's mean update",
            value=float(np.mean([cosine(part, truth) for part, truth in zip(found, whole, strict=True)])),
            prior=max(prior, 0.0),
            threshold=max(prior, 0.0) + 0.05,
            expectation=LEAKING if defence == "masked" else PROTECTING,
            note=f"{rounds} rounds, {clients} clients, {absent} of them absent in each; one budget for all rounds",
        )
        yield defence, outcome


def label_histogram(ground: Ground) -> Cells:
    """How often each class occurs in the whole cohort."""
    clients, each = 16, 8
    pictures = _small(ground.pictures)
    # A skewed cohort: class c with weight 1 / (c + 1).
    weight = 1 / (1.0 + pictures.labels)
    chosen = np.argsort(-np.log(uniform((len(weight),), rand=os.urandom) + 1e-12) / weight)[: clients * each]
    model = perceptron(pictures, 32)
    updates: dict[int, Arrays] = {
        client: fedsgd_update(model, pictures.images[own], pictures.labels[own])
        for client, own in enumerate(np.split(chosen, clients), start=1)
    }
    truth = np.bincount(pictures.labels[chosen], minlength=pictures.classes)
    prior = float(np.minimum(truth, len(chosen) / pictures.classes).sum() / len(chosen))
    knowledge = InversionKnowledge(
        model=model,
        loss=nn.functional.cross_entropy,
        input_shape=(pictures.side, pictures.side),
        labels=None,
        images=len(chosen),
    )
    for defence in HONEST:
        if defence in ("plain", "local"):
            views = sums_seen(updates, defence, sample=clients)
            view: FloatVector = np.sum([flat(view) for view in views], axis=0)
        else:
            view = flat(sum_under(updates, defence).server)
        counts = np.bincount(infer_labels(view, knowledge, rand=os.urandom), minlength=pictures.classes)
        outcome = Outcome(
            attack="label histogram of the cohort",
            metric="share of labels counted in the right class",
            value=float(np.minimum(truth, counts).sum() / len(chosen)),
            prior=prior,
            threshold=prior + 0.05,
            expectation=LEAKING if defence in ("plain", "masked") else Expectation.OPEN,
            note=f"{clients} clients with {each} pictures each; noise hides one client's part, not the cohort's totals",
        )
        yield defence, outcome


def bag_of_words(ground: Ground) -> Cells:
    """Which words were typed, from the rows of the embedding that moved."""
    clients, tokens, vocabulary, width, context = 16, 40, 600, 8, 4
    streams = _typed(vocabulary, clients + 20, tokens)
    typed, public = streams[:clients], streams[clients:]
    model = _NextWord(vocabulary, width)
    updates: dict[int, Arrays] = {
        client: fedsgd_update(
            model,
            np.stack([stream[i : i + context] for i in range(tokens - context)]).astype(np.float64),
            stream[context:],
        )
        for client, stream in enumerate(typed, start=1)
    }
    knowledge = EmbeddingKnowledge(words=vocabulary, width=width)
    frequency = np.bincount(np.concatenate(public), minlength=vocabulary).astype(np.float64)
    for defence in HONEST:
        views = sums_seen(updates, defence, sample=1)
        seen = typed if len(views) == 1 and defence not in ("plain", "local") else typed[:1]
        used = np.zeros(vocabulary, dtype=bool)
        used[np.unique(np.concatenate([stream[:-1] for stream in seen]))] = True
        scores = word_scores(views[0], knowledge)
        prior = max(auc(frequency[used], frequency[~used]), 0.5)
        outcome = Outcome(
            attack="bag of words",
            metric="area under the ROC curve, used against unused words",
            value=auc(scores[used], scores[~used]),
            prior=prior,
            threshold=prior + (1 - prior) / 4,
            expectation=LEAKING if defence in ("plain", "masked") else PROTECTING,
            note=f"{clients} clients with {tokens} words each; under masks the words are the cohort's, without a name",
        )
        yield defence, outcome


class _NextWord(nn.Module):
    """The next word from the mean of the last ones."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.head = nn.Linear(width, words)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(tokens.long()).mean(dim=1))  # type: ignore[no-any-return]


def _typed(vocabulary: int, writers: int, tokens: int) -> list[np.ndarray]:
    """Real text that every Python carries: the topics of its own help, one writer for each, as numbered words."""
    from pydoc_data.topics import topics

    texts = [text.lower().split() for _, text in sorted(topics.items()) if len(text.split()) >= 3 * tokens]
    counts: dict[str, int] = {}
    for text in texts:
        for word in text:
            counts[word] = counts.get(word, 0) + 1
    common = sorted(counts, key=lambda word: (-counts[word], word))[:vocabulary]
    number = {word: index for index, word in enumerate(common)}
    numbered = [np.array([number[word] for word in text if word in number], dtype=np.int64) for text in texts]
    long_enough = [stream[:tokens] for stream in numbered if len(stream) >= tokens]
    return [long_enough[index] for index in order(len(long_enough), rand=os.urandom)[:writers]]


def convolution(pictures: Pictures) -> nn.Module:
    """Three wide convolutions with ReLU, as in the papers on inversion."""
    side, width = pictures.side // 4, 64
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(width * side**2, pictures.classes),
    )  # fmt: skip


def _small(pictures: Pictures) -> Pictures:
    """Digits, for experiments that need thousands of records or many rounds."""
    from .pictures import digit_pictures

    return pictures if pictures.side <= 8 else digit_pictures()

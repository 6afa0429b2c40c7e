"""Small real models learn through the bridge, with per-record gradients and with ghost clipping, on real data."""

import re
from collections import Counter
from itertools import chain, islice, repeat
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from opacus.layers import DPGRU
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dp import RecordLevel
from dp.record_level import SecurePrivacyEngine, require_independent_rows

CLIENTS = 3
WORDS, PLACES = 40, 6
MODES = [("exact", "hooks"), ("sum", "ghost")]


class NextWord(nn.Module):
    """Logits of shape [records, words, places]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.read = DPGRU(16, 24, batch_first=True)
        self.out = nn.Linear(24, WORDS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.read(self.embed(tokens))[0]).transpose(1, 2)


def small_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(72, 10))


def sentences() -> tuple[torch.Tensor, torch.Tensor]:
    """Word numbers of Python's own help texts and those of the next words; a rare word is number 0."""
    words = re.findall(r"[a-z]+", " ".join(topics[name] for name in sorted(topics)).lower())[:60_000]
    number = {word: index for index, (word, _) in enumerate(Counter(words).most_common(WORDS - 1), start=1)}
    stream = torch.tensor([number.get(word, 0) for word in words])
    rows = stream[: len(stream) // (PLACES + 1) * (PLACES + 1)].view(-1, PLACES + 1)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)


def federate(build, data, unit: RecordLevel, mode: str, *, learning_rate: float) -> nn.Module:
    """Every client has an equal part of the data; sums are exact and complete, as a secure aggregation would give."""
    parties, models = [], []
    for part in range(CLIENTS):
        torch.manual_seed(0)
        module = build()
        models.append(module)
        model, optimizer, *criterion, loader = SecurePrivacyEngine().make_private(
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=learning_rate, momentum=0.9),
            data_loader=DataLoader(TensorDataset(*(tensor[part::CLIENTS] for tensor in data))),
            unit=unit, clients=CLIENTS, min_survivors=CLIENTS, max_colluders=0,
            loss_reduction="sum", grad_sample_mode=mode, criterion=nn.CrossEntropyLoss(reduction="sum"),
        )  # fmt: skip
        loss = criterion[0] if criterion else nn.CrossEntropyLoss(reduction="sum")
        parties.append((model, optimizer, loss, loader))
    passes = [chain.from_iterable(repeat(loader)) for *_, loader in parties]
    for batches in islice(zip(*passes, strict=True), unit.rounds):
        shares = []
        for (model, optimizer, loss, _), (inputs, targets) in zip(parties, batches, strict=True):
            loss(model(inputs), targets).backward()
            shares.append(optimizer.contribution().take())
        for _, optimizer, *_ in parties:
            optimizer.apply(np.sum(shares, axis=0), survivors=CLIENTS)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], state[name]) for state in states for name in state)
    spent = parties[0][1].accountant.get_epsilon(unit.delta)
    assert 0.95 * unit.epsilon < spent <= unit.epsilon
    assert all(optimizer.rejected_records == 0 for _, optimizer, *_ in parties)
    return models[0].eval()


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other on a busy machine cost more than these models."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("rounding", "mode"), MODES)
def test_a_convolutional_network_learns_digits(rounding: str, mode: str) -> None:
    features, labels = digits()
    unit = RecordLevel(
        clip_norm=1.0, epsilon=8.0, delta=1e-5, rounds=40, sampling_rate=0.05, records=1500, rounding=rounding
    )
    model = federate(small_cnn, (features[:1500], labels[:1500]), unit, mode, learning_rate=0.5)
    with torch.no_grad():
        accuracy = (model(features[1500:]).argmax(1) == labels[1500:]).float().mean()
    assert accuracy > 0.75


@pytest.mark.parametrize(("rounding", "mode"), MODES)
def test_a_next_word_model_comes_close_to_the_frequencies_of_real_text(rounding: str, mode: str) -> None:
    tokens, following = sentences()
    train, test = slice(0, 3000), slice(6000, None)
    unit = RecordLevel(
        clip_norm=1.0, epsilon=8.0, delta=1e-5, rounds=25, sampling_rate=0.04, records=3000, rounding=rounding
    )
    model = federate(NextWord, (tokens[train], following[train]), unit, mode, learning_rate=1.0)
    with torch.no_grad():
        outputs = model(tokens[test])
        loss = float(nn.functional.cross_entropy(outputs, following[test]))
        untrained = float(nn.functional.cross_entropy(NextWord()(tokens[test]), following[test]))
    shares = torch.bincount(following[train].flatten(), minlength=WORDS) / following[train].numel()
    by_frequency = float(-shares.log()[following[test]].mean())
    # At this epsilon and so few rounds a private model learns how frequent words are, and hardly more.
    assert untrained > by_frequency + 1
    assert loss < by_frequency + 0.15


@pytest.mark.parametrize("build", [small_cnn, NextWord])
def test_rows_of_these_models_are_independent_on_this_machine(build) -> None:
    inputs = torch.randn(6, 1, 8, 8) if build is small_cnn else torch.randint(0, WORDS, (6, PLACES))
    require_independent_rows(build(), inputs, rows=16)

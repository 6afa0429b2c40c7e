"""A keyboard that suggests the next word: one client for each speaker, and nobody's sentences leave their keyboard.

Real text from real authors: the documentation inside Python's standard library, where each module is a speaker (or any
text of yours: `--text FILE`, lines of "NAME: what was said"). The vocabulary is public: the most frequent words of
Python's language reference. A vocabulary counted at the clients would be a release of its own.

- Masks cost bytes and no accuracy: both are counted.
- Noise for whole clients is another matter: a few dozen keyboards are too few, whatever is tuned. The script shows
  that, and asks the configuration how many it would take.

    python examples/keyboard.py [--quick] [--text FILE]
"""

import argparse
import re
import sysconfig
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from pydoc_data import topics

import torch
from torch import nn
from torch.utils.data import TensorDataset

import secagg
from secagg.adapters.torch import parameters_of
from secagg.training import train

SEED, RATE, EPSILON, DELTA, CLIP_NORM = 0, 0.5, 8.0, 1e-5, 1.0
QUARTER, LARGEST_COHORT = 0.25, 50_000  # of the largest update; the library takes cohorts up to 65,520
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
MEMORY = 3000  # words that a keyboard remembers
OTHER = 0  # every word outside the vocabulary: an input like any other, never a suggestion


def library_speakers():
    """Name of a module: its documentation, in order of the source."""
    speakers, root = defaultdict(str), Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root).parts
        if not {"site-packages", "dist-packages", "test", "tests", "idlelib", "pydoc_data"} & set(place):
            text = path.read_text(encoding="utf-8", errors="replace")
            speakers[place[0].removesuffix(".py")] += "\n".join(re.findall(r'"""(.*?)"""', text, re.DOTALL)) + "\n"
    return speakers


def speakers_of(path):
    """Lines of "NAME: what was said"."""
    speakers = defaultdict(str)
    for line in path.read_text(encoding="utf-8").splitlines():
        name, colon, said = line.partition(":")
        if colon:
            speakers[name.strip()] += said + "\n"
    return speakers


def examples(text, number_of):
    """Pairs of (two words, the next word) whose next word is in the vocabulary."""
    words = torch.tensor([number_of.get(word, OTHER) for word in WORD.findall(text.lower())])
    contexts, following = torch.stack([words[:-2], words[1:-1]], dim=1), words[2:]
    known = (following != OTHER).nonzero().flatten()[:MEMORY]
    return contexts[known], following[known]


class NextWord(nn.Module):
    def __init__(self, vocabulary, width):
        torch.manual_seed(SEED)  # the first weights are public; masks and noise never come from here
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.output = nn.Linear(2 * width, vocabulary)

    def forward(self, contexts):
        return self.output(torch.tanh(self.embedding(contexts).flatten(1)))


def hits(scores, targets):
    """Percent of targets that are the first suggestion, and among the three that a keyboard shows."""
    found = scores.topk(3).indices == targets[:, None]
    return 100 * float(found[:, 0].float().mean()), 100 * float(found.any(dim=1).float().mean())


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few speakers, few rounds")
    parser.add_argument("--text", type=Path, help='lines of "NAME: what was said" instead of Python\'s documentation')
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    quick = options.quick
    vocabulary, width, clients, rounds = (100, 4, 8, 8) if quick else (500, 16, 40, 20)

    reference = Counter(WORD.findall(" ".join(topics.topics.values()).lower()))
    number_of = {word: number for number, (word, _) in enumerate(reference.most_common(vocabulary - 1), 1)}
    speakers = speakers_of(options.text) if options.text else library_speakers()
    talkative = sorted(speakers, key=lambda name: (-len(speakers[name]), name))[: clients + clients // 4]
    held_out, clients_of = talkative[4::5], [name for name in talkative if name not in talkative[4::5]]
    if len(clients_of) < 4:
        raise SystemExit(f"a cohort needs at least 4 speakers beside those for the test, got {len(clients_of)}")
    data = {i: TensorDataset(*examples(speakers[name], number_of)) for i, name in enumerate(clients_of, 1)}
    contexts, following = (
        torch.cat(part) for part in zip(*(examples(speakers[name], number_of) for name in held_out), strict=True)
    )
    model_fn = partial(NextWord, vocabulary, width)
    print(
        f"{len(data)} speakers, {sum(map(len, data.values())):,} words to predict; test: {len(following):,} words of "
        f"{len(held_out)} others; {sum(map(torch.numel, model_fn().parameters())):,} parameters"
    )

    def report(name, scores):
        first, shown = hits(scores, following)
        print(f"{name:<40} first suggestion right {first:4.1f} %   one of three {shown:4.1f} %")

    def config(privacy, cohort):
        return secagg.AggregationConfig.cross_device(
            like=parameters_of(model_fn()), clients=cohort, max_dropouts=max(1, cohort // 10),
            max_colluders=cohort // 20, privacy=privacy,
        )  # fmt: skip

    def learn(agreed, rounds, **other):
        trained = train(
            model_fn, data, agreed, rounds=rounds, learning_rate=RATE, batch_size=64,
            drop=lambda number: {number % len(data) + 1},  # in every round another one goes silent half-way
            callbacks=[lambda done: print(f"  round {done.round} of {rounds}: {done.survivors} speakers", flush=True)],
            **other,
        )  # fmt: skip
        with torch.no_grad():
            return trained, trained.model(contexts)

    received = Counter()
    exact = config(secagg.NoPrivacy(clip_norm=100.0), len(data))
    masked, scores = learn(exact, rounds, tap=lambda client, _, message: received.update({client: len(message)}))
    own, shown = float(received.total()) / len(data) / rounds, masked.config.upload_bytes
    unit = secagg.ClientLevel(clip_norm=CLIP_NORM, epsilon=EPSILON, delta=DELTA, rounds=rounds // 2 + 1)
    private = config(unit, len(data))
    _, noised = learn(private, unit.rounds)

    frequencies = torch.tensor([0.0, *(float(count) for _, count in reference.most_common(vocabulary - 1))])
    report("always the most frequent words", frequencies.expand(len(following), -1))
    report("masked, no noise: epsilon is infinite", scores)
    report(f"masked and noised: epsilon {EPSILON:g} per speaker", noised)
    print(
        f"A client sends {own:,.0f} bytes in a round, of which {shown:,} are the masked vector; an update in the clear "
        f"has {4 * masked.config.layout.length:,}."
    )
    print(f"With {len(data)} speakers the noise in the mean is {private.relative_error:.1f} times the largest update.")
    cohort = len(data)
    while cohort < LARGEST_COHORT and config(unit, cohort).relative_error > QUARTER:
        cohort *= 2
    print(
        f"It would be {config(unit, cohort).relative_error:.2f} times with {cohort:,}: "
        f"secagg plan --dimension {private.layout.length} --clients {cohort} --max-dropouts {cohort // 10} "
        f"--max-colluders {cohort // 20} --unit client --clip-norm {CLIP_NORM:g} --epsilon {EPSILON:g} "
        f"--delta {DELTA:g} --rounds {unit.rounds}"
    )


if __name__ == "__main__":
    main()

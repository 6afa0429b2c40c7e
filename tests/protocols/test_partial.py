"""Partial sums: any cut, merged in any order, is the plain sum; nothing counts twice, is missing, or is foreign."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import Phase, ProtocolError
from protocols.pairwise import server
from protocols.partial import MaskJob, MergeError, PartialSum, merge
from protocols.primitives.prg import Words, apply_masks
from protocols.wire import MaskedInput, decode_signed
from tests.rounds import Round, random_vectors, round_config

CONTEXT = bytes(range(32))
DTYPES = [np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8")]


def part(jobs: Iterable[int], lo: int, hi: int, words: Words | None = None, context: bytes = CONTEXT) -> PartialSum:
    words = np.zeros(hi - lo, dtype="<u4") if words is None else words
    return PartialSum(context=context, jobs=frozenset(jobs), lo=lo, hi=hi, words=words)


def vectors(rng: random.Random, jobs: int, length: int, dtype: np.dtype[np.unsignedinteger]) -> Words:
    """One vector for each job, entries over the whole ring, so that sums wrap."""
    return np.frombuffer(rng.randbytes(jobs * length * dtype.itemsize), dtype=dtype).reshape(jobs, length)


def same(a: PartialSum, b: PartialSum) -> bool:
    fields = [(x.context, x.jobs, x.lo, x.hi, x.words.dtype, x.words.tobytes()) for x in (a, b)]
    return fields[0] == fields[1]


def cut_and_merge(rng: random.Random, summands: Words, jobs: list[int], lo: int, hi: int) -> PartialSum:
    """Cuts jobs or range at a random place, again and again, and merges the pieces, each time in a random order."""
    ways = [way for way, can in (("jobs", len(jobs) > 1), ("range", hi - lo > 1)) if can]
    if not ways or rng.random() < 0.1:
        return part(jobs, lo, hi, summands[jobs, lo:hi].sum(axis=0, dtype=summands.dtype))
    if rng.choice(ways) == "jobs":
        mixed = rng.sample(jobs, len(jobs))
        middle = rng.randrange(1, len(jobs))
        pieces = [cut_and_merge(rng, summands, some, lo, hi) for some in (mixed[:middle], mixed[middle:])]
    else:
        middle = rng.randrange(lo + 1, hi)
        pieces = [cut_and_merge(rng, summands, jobs, *ends) for ends in ((lo, middle), (middle, hi))]
    rng.shuffle(pieces)
    return merge(*pieces)


@given(st.randoms(use_true_random=False), st.integers(1, 6), st.integers(1, 12), st.sampled_from(DTYPES))
def test_any_cut_in_any_order_is_the_plain_sum(
    rng: random.Random, jobs: int, length: int, dtype: np.dtype[np.unsignedinteger]
) -> None:
    summands = vectors(rng, jobs, length, dtype)
    merged = cut_and_merge(rng, summands, list(range(jobs)), 0, length)
    assert same(merged, part(range(jobs), 0, length, summands.sum(axis=0, dtype=dtype)))


@given(st.randoms(use_true_random=False), st.booleans())
def test_commutative_and_associative(rng: random.Random, over_jobs: bool) -> None:
    words = vectors(rng, 3, 4, DTYPES[1])
    a, b, c = (part([i], 0, 4, words[i]) if over_jobs else part([0], 4 * i, 4 * i + 4, words[i]) for i in range(3))
    assert same(merge(a, b), merge(b, a))
    assert same(merge(merge(a, b), c), merge(a, merge(b, c)))


ranges = st.tuples(st.integers(0, 6), st.integers(1, 6)).map(lambda at: (at[0], at[0] + at[1]))
parts = st.builds(lambda jobs, ends: part(jobs, *ends), st.frozensets(st.integers(1, 4), min_size=1), ranges)


@given(parts, parts)
def test_merging_counts_each_word_of_each_job_once_or_refuses(a: PartialSum, b: PartialSum) -> None:
    """Against sets of (job, word): a result covers the union of two disjoint sets, and is itself a rectangle."""
    cells = [{(job, word) for job in x.jobs for word in range(x.lo, x.hi)} for x in (a, b)]
    jobs, words = ({cell[i] for cell in cells[0] | cells[1]} for i in range(2))
    rectangle = len(cells[0]) + len(cells[1]) == len(jobs) * len(words) == len(jobs) * (max(words) + 1 - min(words))
    if rectangle and cells[0].isdisjoint(cells[1]):
        merged = merge(a, b)
        assert (merged.jobs, merged.lo, merged.hi) == (jobs, min(words), max(words) + 1)
    else:
        with pytest.raises(MergeError) as refused:
            merge(a, b)
        assert repr(a) in str(refused.value)
        assert repr(b) in str(refused.value)
        assert isinstance(refused.value, ProtocolError)


@pytest.mark.parametrize("other", [part([2], 0, 4, context=bytes(32)), part([2], 0, 4, np.zeros(4, dtype="<u8"))])
def test_another_round_or_word_is_refused(other: PartialSum) -> None:
    with pytest.raises(MergeError):
        merge(part([1], 0, 4), other)


@pytest.mark.parametrize(
    "change",
    [{"context": b"short"}, {"jobs": frozenset()}, {"lo": 4}, {"lo": -1}, {"hi": 5}, {"words": np.zeros(4, np.int32)}],
)
def test_impossible_partials_cannot_be_made(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(part([1], 0, 4), **change)  # type: ignore[arg-type]


def test_words_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        part([1], 0, 4).words[0] = 1


def job(dtype: np.dtype[np.unsignedinteger] = DTYPES[1]) -> MaskJob:
    seeds = [bytes([i]) * 32 for i in range(5)]
    return MaskJob(context=CONTEXT, add=tuple(seeds[:2]), subtract=tuple(seeds[2:]), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_job_over_ranges_is_the_job_over_the_whole(dtype: np.dtype[np.unsignedinteger]) -> None:
    whole = np.arange(1000).astype(dtype)
    ranged = whole.copy()
    apply_masks(whole, add=job().add, subtract=job().subtract)
    job(dtype).add_to(ranged, step=96, map=map)
    assert (ranged == whole).all()


def test_a_job_runs_in_another_process_and_shows_no_seed() -> None:
    task = job()
    stored = pickle.loads(pickle.dumps(task))  # what a cluster does with it
    assert same(merge(stored((0, 16)), task((16, 32))), task((0, 32)))
    assert repr(task) == "<MaskJob>"
    assert not any(seed.hex() in repr(task((0, 16))) for seed in task.add)


def test_a_digest_stands_for_seeds_signs_and_round() -> None:
    task = job()
    other = [
        replace(task, context=bytes(32)),
        replace(task, add=task.subtract, subtract=task.add),
        replace(task, add=task.add[:1]),
        replace(task, add=(), subtract=task.add + task.subtract),
    ]
    assert len({task.digest, *(changed.digest for changed in other)}) == 5
    assert replace(task, add=task.add[::-1]).digest == task.digest


def twice(function: Callable[[object], object], items: Iterable[object]) -> Iterable[object]:
    results = [function(item) for item in items]
    return [*results, results[0]]


def lost(function: Callable[[object], object], items: Iterable[object]) -> Iterable[object]:
    return [function(item) for item in items][1:]


def repeated(function: Callable[[object], object], items: Iterable[object]) -> Iterable[object]:
    results = [function(item) for item in items]
    return [results[1], *results[1:]]


def foreign(function: Callable[[object], object], items: Iterable[object]) -> Iterable[object]:
    return [replace(function, subtract=())(item) for item in items]  # type: ignore[type-var, operator]


@pytest.mark.parametrize("cluster", [twice, lost, repeated, foreign])
def test_a_cluster_that_repeats_or_loses_work_ends_the_round(
    cluster: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SEGMENT_BYTES", 1024)
    game = Round(round_config(3, length=2_000), random_vectors(3, 2_000), server_map=cluster)
    game.advance(Phase.UNMASK)
    with pytest.raises(MergeError):
        game.server.close_phase()
    assert game.server.phase is Phase.ABORTED


@given(st.randoms(use_true_random=False))
def test_front_ends_add_up_to_the_server(rng: random.Random) -> None:
    """Masked vectors shared out among front ends, in any way and order, make the server's accumulator."""
    summands, joined = dict(ARRIVED), list[PartialSum]()
    while summands:
        some = rng.sample(sorted(summands), rng.randint(1, len(summands)))
        total = np.sum([summands.pop(client) for client in some], axis=0, dtype=ACCUMULATED.dtype)
        joined.append(part(some, 0, len(total), total))
    while len(joined) > 1:
        rng.shuffle(joined)
        joined.append(merge(joined.pop(), joined.pop()))
    assert same(joined[0], part(ARRIVED, 0, len(ACCUMULATED), ACCUMULATED))
    with pytest.raises(MergeError, match="share jobs"):  # a front end that delivers again
        merge(joined[0], part([2], 0, len(ACCUMULATED), ARRIVED[2]))


def arrivals() -> tuple[dict[int, Words], Words]:
    """The masked vectors of a round, as they arrived, and what its server made of them."""
    game = Round(round_config(5, threshold=3, length=50), random_vectors(5, 50))
    game.advance(Phase.MASKED_INPUT)
    tails = {client: data for client, phase, data in game.sent if phase is Phase.MASKED_INPUT}
    frames = {c: decode_signed(data, MaskedInput, limit=len(data), tail_bytes=200) for c, data in tails.items()}
    return {c: np.frombuffer(frame.tail, dtype="<u4") for c, frame in frames.items()}, game.server._words.copy()


ARRIVED, ACCUMULATED = arrivals()


def test_processes_unmask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SEGMENT_BYTES", 1024)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        game = Round(round_config(3, length=1_000), random_vectors(3, 1_000), server_map=pool.map)
        result = game.run()
    assert (result.vector == game.expected(result.survivors)).all()

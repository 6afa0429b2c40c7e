"""Partial sums: what one worker or front end adds up, and how two of them become one.

Rules:

1. A partial sum says what it is a sum of: the round (`context`), the summands (`jobs`) and the words [lo, hi) of the
   vector. Summands are client ids where masked vectors arrive, and digests of `MaskJob`s where masks are expanded.
2. Same range, disjoint jobs: added modulo 2^(bits of a word). Same jobs, adjacent ranges: joined. Everything else is
   refused, so nothing is added twice, left out or taken from another round.
3. The order of merging does not show in the result.
4. A `MaskJob` is plain data and a pure function of a range: a thread, a process or another machine may run it. It holds
   seeds, so it goes only to machines that are trusted like the server.
5. Whoever cuts seeds into several jobs puts each seed into one of them: a job is the smallest thing that is recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Protocol, TypeVar

import numpy as np

from .errors import ProtocolError
from .primitives.prg import Words, apply_masks

CONTEXT_BYTES = 32

Item = TypeVar("Item")
Result = TypeVar("Result")


class Map(Protocol):
    """`builtins.map`, the `map` of a thread or process pool, or that of a cluster; results may come in any order."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterable[Result]:
        """The result of `function` for every item."""


class MergeError(ProtocolError):
    """Partial sums that must not become one: a summand or a word would count twice, be missing, or be foreign."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartialSum:
    """The words [lo, hi) of a sum over `jobs`.

    Attributes:
        context: 32 bytes that only this round has.
        jobs: what was summed, not empty: client ids, or digests of mask jobs.
        lo: the first word.
        hi: the word after the last.
        words: unsigned words, read-only.

    Raises:
        ValueError: the fields do not fit each other.
    """

    context: bytes
    jobs: frozenset[int | bytes]
    lo: int
    hi: int
    words: Words

    def __post_init__(self) -> None:
        if len(self.context) != CONTEXT_BYTES:
            raise ValueError(f"context must have {CONTEXT_BYTES} bytes, got {len(self.context)}")
        if not self.jobs:
            raise ValueError("jobs must not be empty")
        if not 0 <= self.lo < self.hi:
            raise ValueError(f"the range [{self.lo}, {self.hi}) must not be empty or negative")
        if self.words.dtype.kind != "u" or self.words.shape != (self.hi - self.lo,):
            raise ValueError(f"words must be {self.hi - self.lo} unsigned integers")
        view = self.words.view()
        view.flags.writeable = False
        object.__setattr__(self, "words", view)

    def __repr__(self) -> str:
        jobs = f"{len(self.jobs)} job{'s' if len(self.jobs) > 1 else ''}"
        return f"<PartialSum {self.context.hex()[:8]}: {jobs}, {self.words.dtype}[{self.lo}, {self.hi})>"


def merge(a: PartialSum, b: PartialSum) -> PartialSum:
    """One partial sum from two; changes neither.

    Args:
        a: a partial sum.
        b: another one, of the same round.

    Returns:
        The sum over the jobs of both, if they have one range; the joined range, if they have the same jobs.

    Raises:
        MergeError: they are of two rounds or word sizes, share a job or a word, or leave a gap.
    """
    if a.context != b.context:
        raise MergeError(f"{a!r} and {b!r} belong to two rounds")
    if a.words.dtype != b.words.dtype:
        raise MergeError(f"{a!r} and {b!r} have different words")
    if (a.lo, a.hi) == (b.lo, b.hi):
        if a.jobs & b.jobs:
            raise MergeError(f"{a!r} and {b!r} share jobs")
        return PartialSum(context=a.context, jobs=a.jobs | b.jobs, lo=a.lo, hi=a.hi, words=a.words + b.words)
    if a.jobs != b.jobs:
        raise MergeError(f"{a!r} and {b!r} differ in range and in jobs")
    if a.lo > b.lo:
        a, b = b, a
    if a.hi != b.lo:
        raise MergeError(f"{a!r} and {b!r} are not adjacent")
    return PartialSum(context=a.context, jobs=a.jobs, lo=a.lo, hi=b.hi, words=np.concatenate((a.words, b.words)))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class MaskJob:
    """Masks to be expanded, over any range of the vector.

    Args:
        context: 32 bytes that only this round has.
        add: 32-byte seeds whose keystream is added.
        subtract: 32-byte seeds whose keystream is subtracted.
        dtype: the words.
    """

    context: bytes
    add: tuple[bytes, ...]
    subtract: tuple[bytes, ...]
    dtype: np.dtype[np.unsignedinteger]

    def __repr__(self) -> str:
        return "<MaskJob>"

    @cached_property
    def digest(self) -> bytes:
        """Says which masks, and nothing about them: SHA-256 over the context and all seeds in any order."""
        digest = sha256(b"secagg/v1/mask-job" + self.context)
        for seeds in (self.add, self.subtract):
            digest.update(len(seeds).to_bytes(8, "big"))
            digest.update(b"".join(sorted(seeds)))
        return digest.digest()

    def __call__(self, bounds: tuple[int, int]) -> PartialSum:
        """The masks' words [lo, hi); lo must be the first word of a cipher block."""
        lo, hi = bounds
        words = np.zeros(hi - lo, dtype=self.dtype)
        apply_masks(words, add=self.add, subtract=self.subtract, first_byte=lo * words.itemsize)
        return PartialSum(context=self.context, jobs=frozenset({self.digest}), lo=lo, hi=hi, words=words)

    def add_to(self, words: Words, *, step: int, map: Map) -> None:  # noqa: A002 - it is the builtin's place
        """Adds all masks to the whole vector `words` in place; needs no more memory than the results that `map` holds.

        Args:
            words: the whole vector.
            step: words in one range.
            map: where the ranges are expanded.

        Raises:
            MergeError: `map` gave a range twice, not at all, or a result of another job; `words` is then spoilt.
        """
        ranges = [(lo, min(lo + step, len(words))) for lo in range(0, len(words), step)]
        missing, jobs = set(ranges), frozenset({self.digest})  # the digest is made here, not again in every worker
        for part in map(self, ranges):
            if part.context != self.context or part.jobs != jobs or part.words.dtype != words.dtype:
                raise MergeError(f"{part!r} is of another job")
            if (part.lo, part.hi) not in missing:
                raise MergeError(f"{part!r} came twice, or nobody asked for it")
            missing.remove((part.lo, part.hi))
            np.add(words[part.lo : part.hi], part.words, out=words[part.lo : part.hi])
            del part  # or it would stay alive while a lazy map makes the next one
        if missing:
            raise MergeError(f"{len(missing)} of {len(ranges)} ranges of {self!r} are missing")

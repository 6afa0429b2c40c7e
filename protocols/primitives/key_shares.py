"""Shamir shares of ring keys over F_65521, which add: the sum of shares is a share of the sum of keys. Experimental.

Rules:

1. A key is N small integers; each is shared on its own polynomial of degree t - 1, whose value at 0 it is. Fewer than t
   shares are independent of the key. After the key's come eight uniform elements that serve `share_proof` alone.
2. Slot i evaluates at x = i + 1, as in `shamir`. A share is N + 8 elements, little-endian, the share of a sum the N of
   the key; elements at or above 65521 are refused.
3. The first t - 1 slots get a 32-byte seed whose keystream *is* their share (AES-256-CTR, by rejection); the others
   interpolate through these and the key. With random instead of pseudo-random bytes this is Shamir's sharing exactly.
4. Spare shares make wrong ones visible: from t + 2e shares at most e wrong ones are located. More of them may go
   unseen, so whoever reconstructs also checks the key against something else.
5. Products run in float64 and are exact, as in `shamir`.

Source: Shamir, CACM 22 (1979); Berlekamp and Welch, US patent 4,633,470 (expired), in the form of Gemmell and Sudan,
"Highly resilient correctors for polynomials", IPL 43 (1992).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from . import prg
from .ring_mask import DEGREE, Coefficients
from .shamir import PRIME, Field

BLINDING = 8  # elements
ELEMENTS = DEGREE + BLINDING
SHARE_BYTES = 2 * ELEMENTS
SUM_BYTES = 2 * DEGREE
_ELEMENT = np.dtype("<u2")
_SPARE = 64  # 15 of 65536 draws are rejected: that much more keystream is enough but for 2^-180

Share = NDArray[np.uint16]


def share(
    key: Coefficients, slots: Sequence[int], *, threshold: int, rand: Callable[[int], bytes]
) -> tuple[list[bytes], list[Share]]:
    """Shares a key among the holders in `slots`.

    Args:
        key: int64[2048], coefficients below 65521 / 2 in size.
        slots: the distinct slots of the holders, at least `threshold`.
        threshold: t, how many shares reconstruct.
        rand: source of uniform bytes.

    Returns:
        One encoded share for each slot: t - 1 seeds of 32 bytes, then shares of 4112 bytes; `decode` reads both. And
        the first t of them, decoded.
    """
    seeds = [rand(prg.SEED_BYTES) for _ in range(threshold - 1)]
    secret = np.concatenate([key % PRIME, uniform(rand(prg.SEED_BYTES), BLINDING)])
    streams = [uniform(seed, ELEMENTS) for seed in seeds]
    values = np.stack([secret, *streams]).astype(np.float64)
    weights = lagrange(
        [0, *(slot + 1 for slot in slots[: threshold - 1])], [slot + 1 for slot in slots[threshold - 1 :]]
    )
    shares = (weights @ values % PRIME).astype(_ELEMENT)
    return seeds + [row.tobytes() for row in shares], [*streams, shares[0]]


def encoded_bytes(position: int, threshold: int) -> int:
    """The size of the share of the holder at a position in `slots`."""
    return prg.SEED_BYTES if position < threshold - 1 else SHARE_BYTES


def decode(data: bytes) -> Share:
    """Reads a share or the seed of one; uint16[2056].

    Raises:
        ValueError: the length is neither, or an element is not in the field.
    """
    if len(data) == prg.SEED_BYTES:
        return uniform(data, ELEMENTS)
    if len(data) != SHARE_BYTES:
        raise ValueError(f"a share takes {SHARE_BYTES} bytes, or {prg.SEED_BYTES} as a seed, got {len(data)}")
    return elements(data)


def decode_sum(data: bytes) -> Share:
    """Reads what `add` made; uint16[2048].

    Raises:
        ValueError: the length is another one, or an element is not in the field.
    """
    if len(data) != SUM_BYTES:
        raise ValueError(f"a sum of shares takes {SUM_BYTES} bytes, got {len(data)}")
    return elements(data)


def add(shares: Iterable[Share]) -> bytes:
    """The share of the sum of the shared keys, encoded; blinding elements are in no sum."""
    total = np.zeros(DEGREE, dtype=np.int64)
    for one in shares:
        total += one[:DEGREE]
    return (total % PRIME).astype(_ELEMENT).tobytes()


def reconstruct(
    slots: Sequence[int], shares: Sequence[Share], *, threshold: int
) -> tuple[Coefficients, frozenset[int]]:
    """Interpolates a key.

    Args:
        slots: at least t distinct slots.
        shares: their shares of the sum.
        threshold: t.

    Returns:
        The key, centred, int64[2048]; the slots whose shares are wrong, at most half of the spare ones.

    Raises:
        ValueError: the shares are on no polynomial, whichever half of the spare ones is left out.
    """
    x = [slot + 1 for slot in slots]
    rows = np.stack(shares).astype(np.float64)
    key, wrong = _through(range(threshold), x, rows)
    if wrong:
        suspects = _locate(x, rows, threshold)
        key, wrong = _through([i for i in range(len(x)) if i not in suspects][:threshold], x, rows)
    if 2 * len(wrong) > len(x) - threshold:
        raise ValueError(f"more than {(len(x) - threshold) // 2} of {len(x)} shares are wrong")
    return np.where(key > PRIME // 2, key - PRIME, key), frozenset(slots[i] for i in wrong)


def _through(basis: Sequence[int], x: Sequence[int], rows: Field) -> tuple[Coefficients, list[int]]:
    """The values at 0 of the polynomials of degree t - 1 through t rows, and which other rows are not on them."""
    others = [i for i in range(len(x)) if i not in basis]
    values = lagrange([x[i] for i in basis], [0, *(x[i] for i in others)]) @ rows[list(basis)] % PRIME
    wrong = [i for i, value in zip(others, values[1:], strict=True) if not np.array_equal(value, rows[i])]
    return values[0].astype(np.int64), wrong


def _locate(x: Sequence[int], rows: Field, threshold: int) -> frozenset[int]:
    """Positions among which all wrong rows are, if at most (rows - t) / 2 are wrong; never more positions than that.

    Looks at one combination of the columns, drawn from the shares themselves: a wrong row escapes with probability
    1/65521, and `reconstruct` then refuses.
    """
    mixture = uniform(sha256(rows.astype(_ELEMENT).tobytes()).digest(), DEGREE).astype(np.float64)
    values = (rows @ mixture % PRIME).astype(np.int64)
    errors = (len(x) - threshold) // 2
    points = np.array(x, dtype=np.int64)
    # Q(x) = y E(x) in every point, deg Q < t + e, E monic of degree e: wrong points are roots of E.
    powers = np.ones((len(x), threshold + errors + 1), dtype=np.int64)
    for column in range(1, powers.shape[1]):
        powers[:, column] = powers[:, column - 1] * points % PRIME
    left = np.hstack([powers[:, : threshold + errors], -values[:, None] * powers[:, :errors] % PRIME])
    solution = _solve(left, values * powers[:, errors] % PRIME)
    if solution is None:
        return frozenset()
    locator = (powers[:, :errors] @ solution[threshold + errors :] + powers[:, errors]) % PRIME
    return frozenset(np.flatnonzero(locator == 0).tolist())


def _solve(matrix: Coefficients, right: Coefficients) -> Coefficients | None:
    """One solution of a linear system over F_65521, free unknowns 0; None if there is none."""
    system = np.hstack([matrix, right[:, None]])
    pivots: list[int] = []
    for column in range(matrix.shape[1]):
        below = np.flatnonzero(system[len(pivots) :, column])
        if not below.size:
            continue
        row, found = len(pivots), len(pivots) + int(below[0])
        system[[row, found]] = system[[found, row]]
        system[row] = system[row] * pow(int(system[row, column]), -1, PRIME) % PRIME
        others = np.arange(len(system)) != row
        system[others] = (system[others] - system[others, column, None] * system[row]) % PRIME
        pivots.append(column)
    if system[len(pivots) :, -1].any():
        return None
    solution = np.zeros(matrix.shape[1], dtype=np.int64)
    solution[pivots] = system[: len(pivots), -1]
    return solution


def elements(data: bytes) -> Share:
    """Reads field elements, two bytes each, little-endian.

    Raises:
        ValueError: one is not in the field.
    """
    read = np.frombuffer(data, dtype=_ELEMENT)
    if (read >= PRIME).any():
        raise ValueError(f"a share has an element outside the field of {PRIME} elements")
    return read


def uniform(seed: bytes, count: int) -> Share:
    """The uniform elements that a seed stands for: its keystream, without those outside the field."""
    drawn = np.zeros(count + _SPARE, dtype=_ELEMENT)
    prg.apply_masks(drawn, add=[seed], subtract=[])
    accepted = drawn[drawn < PRIME][:count]
    if len(accepted) < count:
        raise ValueError("a seed has too many elements outside the field")
    return accepted


def lagrange(x: Sequence[int], at: Sequence[int]) -> Field:
    """float64[len(at), len(x)]: weights that give the values at `at` of the polynomial through values at `x`.

    All points are distinct: w_i(a) = prod over j of (a - x_j), / (a - x_i), / prod over j != i of (x_i - x_j).
    """
    nodes, targets = np.array(x, dtype=np.int64), np.array(at, dtype=np.int64)
    from_targets = (targets[:, None] - nodes) % PRIME
    from_nodes = (nodes[:, None] - nodes) % PRIME + np.eye(len(nodes), dtype=np.int64)
    return (_product(from_targets) * _inverse(from_targets * _product(from_nodes).T % PRIME) % PRIME).astype(np.float64)


def _product(rows: Coefficients) -> Coefficients:
    """int64[n, 1]: the product of each row."""
    result = np.ones(len(rows), dtype=np.int64)
    for column in rows.T:
        result = result * column % PRIME
    return result[:, None]


def _inverse(values: Coefficients) -> Coefficients:
    """The inverse of every element: its power p - 2."""
    result = np.ones_like(values)
    for bit in f"{PRIME - 2:b}":
        result = result * result % PRIME
        if bit == "1":
            result = result * values % PRIME
    return result

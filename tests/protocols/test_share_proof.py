"""Proofs of a dealer against plain integer arithmetic over F_65521, and against dealers that cheat."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.primitives import key_shares, share_proof
from protocols.primitives.key_shares import BLINDING, Share
from protocols.primitives.ring_mask import DEGREE

from .oracles import SHAMIR_PRIME, interpolate_at

CHALLENGE = bytes(range(32))
RHO = share_proof.challenge(CHALLENGE)


def dealt(slots: list[int], threshold: int, seed: int = 0) -> list[Share]:
    rng = np.random.default_rng(seed)
    key = rng.integers(-40, 41, DEGREE)
    encoded, first = key_shares.share(key, slots, threshold=threshold, rand=rng.bytes)
    shares = [key_shares.decode(one) for one in encoded]
    assert [one.tolist() for one in first] == [one.tolist() for one in shares[:threshold]]
    return shares


def accepts(slots: list[int], threshold: int, shares: list[Share], proof: bytes) -> list[bool]:
    return [
        share_proof.fits(proof, share, CHALLENGE, share_proof.weights(slots, slot, threshold=threshold))
        for slot, share in zip(slots, shares, strict=True)
    ]


def moved(share: Share, column: int, by: int) -> Share:
    changed = share.astype(np.int64)
    changed[column] += by
    return (changed % SHAMIR_PRIME).astype(np.uint16)


@st.composite
def committees(draw: st.DrawFn) -> tuple[list[int], int]:
    slots = sorted(draw(st.sets(st.integers(0, 40), min_size=2, max_size=9)))
    return slots, draw(st.integers(1, len(slots)))


@given(committees(), st.integers(0, 2**32))
@settings(max_examples=30)
def test_an_honest_proof_holds_for_everybody(committee: tuple[list[int], int], seed: int) -> None:
    slots, threshold = committee
    shares = dealt(slots, threshold, seed)
    proof = share_proof.prove(shares[:threshold], CHALLENGE)
    assert len(proof) == share_proof.proof_bytes(threshold) == 16 * threshold
    share_proof.check(proof, threshold)
    assert all(accepts(slots, threshold, shares, proof))


def test_values_are_those_of_plain_integers() -> None:
    slots, threshold = [1, 4, 6, 9], 3
    shares = dealt(slots, threshold)
    proof = np.frombuffer(share_proof.prove(shares[:threshold], CHALLENGE), dtype="<u2").reshape(threshold, BLINDING)
    rho = RHO.astype(int).tolist()
    plain = [
        [
            (sum(a * b for a, b in zip(row, share[:DEGREE].tolist(), strict=True)) + int(share[DEGREE + i]))
            % SHAMIR_PRIME
            for i, row in enumerate(rho)
        ]
        for share in shares
    ]
    assert proof.tolist() == plain[:threshold]
    for i in range(BLINDING):
        first = {slot + 1: values[i] for slot, values in zip(slots[:threshold], plain, strict=False)}
        assert interpolate_at(slots[3] + 1, first) == plain[3][i]


@given(st.integers(0, 5), st.integers(0, DEGREE + BLINDING - 1), st.integers(1, SHAMIR_PRIME - 1), st.booleans())
@settings(max_examples=40)
def test_one_element_off_is_noticed_by_somebody(holder: int, column: int, by: int, told: bool) -> None:
    """Whether or not the dealer makes its proof from the shares that it moved."""
    slots, threshold = [0, 2, 3, 5, 7, 8], 4
    honest = dealt(slots, threshold)
    shares = [moved(share, column, by) if i == holder else share for i, share in enumerate(honest)]
    proof = share_proof.prove((shares if told else honest)[:threshold], CHALLENGE)
    accepted = accepts(slots, threshold, shares, proof)
    assert not all(accepted)
    if not told or holder >= threshold:
        assert accepted == [i != holder for i in range(len(slots))]


def test_the_challenge_has_no_structure_that_a_dealer_could_use() -> None:
    """Rows are independent, elements are in the field, and another digest is another challenge."""
    assert RHO.shape == (BLINDING, DEGREE)
    assert RHO.min() >= 0
    assert RHO.max() < SHAMIR_PRIME
    assert np.linalg.matrix_rank(RHO) == BLINDING
    assert not np.array_equal(RHO, share_proof.challenge(bytes(32)))
    assert len(np.unique(RHO)) > 14_000  # of 16,384 draws from 65,521: 14,481 expected


def test_a_proof_is_blinded() -> None:
    """The same key shared twice: proofs have nothing in common; without blinding they would meet at 0."""
    slots, threshold = [0, 1, 2], 3
    key = np.zeros(DEGREE, dtype=np.int64)
    values = []
    for _ in range(2):
        _, shares = key_shares.share(key, slots, threshold=threshold, rand=os.urandom)
        proof = np.frombuffer(share_proof.prove(shares, CHALLENGE), dtype="<u2").reshape(threshold, BLINDING)
        values.append([interpolate_at(0, {x + 1: int(proof[x, i]) for x in range(threshold)}) for i in range(BLINDING)])
    assert sum(one == other for one, other in zip(*values, strict=True)) <= 1
    assert any(values[0])


@pytest.mark.parametrize("size", [0, 63, 65, 48, 80])
def test_a_proof_of_another_size_is_none(size: int) -> None:
    with pytest.raises(ValueError, match=f"takes 64 bytes for threshold 4, got {size}"):
        share_proof.check(bytes(size), 4)


def test_a_proof_outside_the_field_is_none() -> None:
    with pytest.raises(ValueError, match="65521"):
        share_proof.check(bytes(62) + (65521).to_bytes(2, "little"), 4)

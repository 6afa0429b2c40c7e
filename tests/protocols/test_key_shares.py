"""Shares of ring keys against plain integer arithmetic over F_65521."""

from __future__ import annotations

import os
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.primitives import key_shares
from protocols.primitives.key_shares import ELEMENTS, Share
from protocols.primitives.ring_mask import DEGREE, Coefficients

from .oracles import SHAMIR_PRIME, interpolate_at

COLUMNS = (0, 1, 1000, DEGREE - 1)


def random_key(seed: int, largest: int = 40) -> Coefficients:
    return np.random.default_rng(seed).integers(-largest, largest + 1, DEGREE)


def shares_of(key: Coefficients, slots: list[int], threshold: int, seed: int = 0) -> list[Share]:
    rand = np.random.default_rng(seed).bytes
    encoded, _ = key_shares.share(key, slots, threshold=threshold, rand=rand)
    return [key_shares.decode(one) for one in encoded]


def sums_of(shares: list[Share]) -> list[Share]:
    """What holders of one key alone would answer."""
    return [key_shares.decode_sum(key_shares.add([share])) for share in shares]


def wrong(share: Share, seed: int, columns: int = 5) -> Share:
    """The share with errors in a few random columns."""
    rng = np.random.default_rng(seed)
    changed = share.astype(np.int64)
    changed[rng.choice(DEGREE, columns, replace=False)] += rng.integers(1, SHAMIR_PRIME, columns)
    return (changed % SHAMIR_PRIME).astype(np.uint16)


@st.composite
def committees(draw: st.DrawFn) -> tuple[list[int], int]:
    """Slots of the members that are there, and the threshold."""
    slots = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=12)))
    return slots, draw(st.integers(1, len(slots)))


class TestShare:
    @given(committees(), st.integers(0, 2**32))
    @settings(max_examples=40)
    def test_every_share_is_on_one_polynomial_with_the_key_at_zero(
        self, committee: tuple[list[int], int], seed: int
    ) -> None:
        slots, threshold = committee
        key = random_key(seed, 32760)
        shares = shares_of(key, slots, threshold, seed)
        for column in COLUMNS:
            points = {slot + 1: int(share[column]) for slot, share in zip(slots, shares, strict=True)}
            first = dict(list(points.items())[:threshold])
            assert interpolate_at(0, first) == key[column] % SHAMIR_PRIME
            assert all(interpolate_at(x, first) == y for x, y in points.items())

    def test_shares_are_seeds_first(self) -> None:
        encoded, _ = key_shares.share(random_key(0), [0, 2, 3, 7, 8], threshold=3, rand=os.urandom)
        assert [len(one) for one in encoded] == [32, 32, 4112, 4112, 4112]
        assert [key_shares.encoded_bytes(i, 3) for i in range(5)] == [len(one) for one in encoded]

    def test_a_seed_stands_for_its_keystream_by_rejection(self) -> None:
        """Enough seeds to meet the smallest rejected element, 65521."""
        met = False
        for i in range(100):
            seed = bytes([i]) * 32
            stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(8192))
            elements = np.frombuffer(stream, dtype="<u2").tolist()
            met = met or SHAMIR_PRIME in elements[:ELEMENTS]
            uniform = [element for element in elements if element < SHAMIR_PRIME][:ELEMENTS]
            assert key_shares.decode(seed).tolist() == uniform
        assert met

    def test_a_seed_with_too_many_rejections_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(key_shares, "_SPARE", 0)
        seeds = [bytes([i]) * 32 for i in range(40)]
        refused = 0
        for seed in seeds:
            try:
                key_shares.decode(seed)
            except ValueError:
                refused += 1
        assert 0 < refused < len(seeds)


class TestDecode:
    @pytest.mark.parametrize("size", [0, 31, 33, 4096, 4111, 4113])
    def test_refuses_other_lengths(self, size: int) -> None:
        with pytest.raises(ValueError, match=str(size)):
            key_shares.decode(bytes(size))

    @pytest.mark.parametrize("element", [65521, 65535])
    def test_refuses_what_is_not_in_the_field(self, element: int) -> None:
        with pytest.raises(ValueError, match="65521"):
            key_shares.decode(bytes(4110) + element.to_bytes(2, "little"))
        assert key_shares.decode(bytes(4110) + (65520).to_bytes(2, "little"))[-1] == 65520


class TestDecodeSum:
    @pytest.mark.parametrize("size", [0, 32, 4095, 4097, 4112])
    def test_refuses_other_lengths(self, size: int) -> None:
        with pytest.raises(ValueError, match=str(size)):
            key_shares.decode_sum(bytes(size))

    def test_refuses_what_is_not_in_the_field(self) -> None:
        with pytest.raises(ValueError, match="65521"):
            key_shares.decode_sum(bytes(4094) + (65521).to_bytes(2, "little"))

    def test_blinding_is_in_no_sum(self) -> None:
        key = random_key(3)
        (share,) = shares_of(key, [0], 1)
        assert key_shares.decode_sum(key_shares.add([share])).tolist() == share[:DEGREE].tolist()
        assert len(share) == DEGREE + 8


class TestReconstruct:
    @given(committees(), st.integers(1, 6), st.integers(0, 2**32))
    @settings(max_examples=40)
    def test_sums_of_shares_are_shares_of_sums(self, committee: tuple[list[int], int], clients: int, seed: int) -> None:
        slots, threshold = committee
        keys = [random_key(seed + i) for i in range(clients)]
        shares = [shares_of(key, slots, threshold, seed + i) for i, key in enumerate(keys)]
        sums = [key_shares.decode_sum(key_shares.add(column)) for column in zip(*shares, strict=True)]
        key, liars = key_shares.reconstruct(slots, sums, threshold=threshold)
        assert np.array_equal(key, np.sum(keys, axis=0))
        assert liars == frozenset()

    @given(committees(), st.data())
    @settings(max_examples=40)
    def test_locates_wrong_shares_up_to_half_of_the_spare_ones(
        self, committee: tuple[list[int], int], data: st.DataObject
    ) -> None:
        slots, threshold = committee
        key = random_key(1, 32760)
        shares = sums_of(shares_of(key, slots, threshold))
        most = (len(slots) - threshold) // 2
        liars = data.draw(st.lists(st.sampled_from(slots), max_size=most, unique=True))
        for liar in liars:
            shares[slots.index(liar)] = wrong(shares[slots.index(liar)], liar)
        assert_found(key, slots, shares, threshold, set(liars))

    def test_locates_every_pair(self) -> None:
        slots, threshold = [0, 1, 3, 4, 5, 8, 9], 3
        key = random_key(2)
        for liars in combinations(slots, 2):
            shares = sums_of(shares_of(key, slots, threshold))
            for liar in liars:
                shares[slots.index(liar)] = wrong(shares[slots.index(liar)], liar, columns=1)
            assert_found(key, slots, shares, threshold, set(liars))

    @given(committees(), st.integers(0, 2**32))
    @settings(max_examples=40)
    def test_refuses_more_wrong_shares_than_it_can_locate(self, committee: tuple[list[int], int], seed: int) -> None:
        """Random errors in one share more; with no spare share at all nothing can be noticed here."""
        slots, threshold = committee
        if len(slots) == threshold:
            return
        shares = sums_of(shares_of(random_key(seed), slots, threshold))
        for i in range((len(slots) - threshold) // 2 + 1):
            shares[i] = wrong(shares[i], seed + i, columns=DEGREE)
        with pytest.raises(ValueError, match="wrong"):
            key_shares.reconstruct(slots, shares, threshold=threshold)


def assert_found(key: Coefficients, slots: list[int], shares: list[Share], threshold: int, liars: set[int]) -> None:
    found, named = key_shares.reconstruct(slots, shares, threshold=threshold)
    assert np.array_equal(found, key)
    assert named == liars

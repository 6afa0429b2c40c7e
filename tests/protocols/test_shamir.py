"""Shamir sharing against plain integer arithmetic over F_65521."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocols.primitives import shamir

from .oracles import SHAMIR_PRIME, digits_of, evaluate, interpolate_at

secrets32 = st.binary(min_size=32, max_size=32)


def seeded(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def scripted(data: bytes) -> Callable[[int], bytes]:
    """Gives `data` piece by piece, and refuses to give more."""
    left = memoryview(data)

    def rand(size: int) -> bytes:
        nonlocal left
        assert size <= len(left), "more randomness was asked for than the script holds"
        piece, left = left[:size], left[size:]
        return bytes(piece)

    return rand


@st.composite
def sharings(draw: st.DrawFn) -> tuple[list[bytes], int, int, int]:
    holders = draw(st.integers(1, 12))
    threshold = draw(st.integers(1, holders))
    return draw(st.lists(secrets32, min_size=1, max_size=3)), threshold, holders, draw(st.integers(0, 2**32))


class TestShare:
    @given(sharings())
    def test_equals_plain_polynomials(self, sharing: tuple[list[bytes], int, int, int]) -> None:
        secrets, threshold, holders, seed = sharing
        width = 18 * len(secrets)
        coefficients = np.random.default_rng(seed).integers(0, SHAMIR_PRIME, size=(threshold - 1, width))
        rand = scripted(coefficients.astype("<u2").tobytes())
        shares = shamir.share(secrets, threshold=threshold, holders=holders, rand=rand)
        assert shares.dtype == np.uint16
        assert shares.shape == (holders, len(secrets), 18)
        digits = [digit for secret in secrets for digit in digits_of(secret)]
        for column, digit in enumerate(digits):
            polynomial = [digit, *(int(c) for c in coefficients[:, column])]
            expected = [evaluate(polynomial, slot + 1) for slot in range(holders)]
            assert shares[:, column // 18, column % 18].tolist() == expected

    @given(sharings(), st.data())
    def test_any_threshold_shares_reconstruct(
        self, sharing: tuple[list[bytes], int, int, int], data: st.DataObject
    ) -> None:
        secrets, threshold, holders, seed = sharing
        shares = shamir.share(secrets, threshold=threshold, holders=holders, rand=seeded(seed))
        slots = data.draw(st.permutations(range(holders)))[:threshold]
        assert shamir.reconstruct(slots, shares[slots]) == secrets

    def test_every_subset_of_every_small_sharing_reconstructs(self) -> None:
        secret = bytes(range(32))
        for holders in range(1, 7):
            for threshold in range(1, holders + 1):
                shares = shamir.share([secret], threshold=threshold, holders=holders, rand=seeded(holders))
                for slots in combinations(range(holders), threshold):
                    assert shamir.reconstruct(slots, shares[list(slots)]) == [secret]

    def test_a_large_sharing_is_exact(self) -> None:
        """Products of 500 elements of 16 bits still fit float64."""
        secrets = [b"\xff" * 32, bytes(32)]
        shares = shamir.share(secrets, threshold=500, holders=700, rand=lambda size: b"\xf0\xff" * (size // 2))
        digits = [0x7FFF] * 17 + [1]
        polynomial = [[digit] + [65520] * 499 for digit in digits]
        assert shares[699, 0].tolist() == [evaluate(p, 700) for p in polynomial]
        slots = list(range(200, 700))
        assert shamir.reconstruct(slots, shares[slots]) == secrets

    @pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (4, 3), (-1, 3), (1, 0), (1, 65521)])
    def test_sizes_out_of_range(self, threshold: int, holders: int) -> None:
        with pytest.raises(ValueError, match="threshold"):
            shamir.share([bytes(32)], threshold=threshold, holders=holders, rand=seeded(0))

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_secrets_of_another_size(self, size: int) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            shamir.share([bytes(32), bytes(size)], threshold=2, holders=3, rand=seeded(0))

    def test_coefficients_outside_the_field_are_drawn_again(self) -> None:
        """15 of 65536 draws must be rejected, or coefficients below 15 would be twice as likely."""
        bad = np.arange(SHAMIR_PRIME, 65536, dtype="<u2")
        assert len(bad) == 15
        good = np.arange(1000, 1018, dtype="<u2")
        first = np.concatenate([bad, good[:3]])
        second = np.concatenate([bad[:5], good[3:13]])
        rand = scripted(np.concatenate([first, second, good[13:]]).tobytes())
        shares = shamir.share([bytes(32)], threshold=2, holders=2, rand=rand)
        assert shares[0, 0].tolist() == good.tolist()

    def test_threshold_one_asks_for_no_randomness(self) -> None:
        shares = shamir.share([bytes(range(32))], threshold=1, holders=2, rand=scripted(b""))
        assert shares[0, 0].tolist() == shares[1, 0].tolist() == digits_of(bytes(range(32)))

    @given(secret=secrets32, threshold=st.integers(2, 6), seed=st.integers(0, 2**32))
    @settings(max_examples=30)
    def test_fewer_shares_fit_every_secret_equally_well(self, secret: bytes, threshold: int, seed: int) -> None:
        """For t - 1 shares and any secret there is exactly one polynomial, so the shares say nothing about it."""
        shares = shamir.share([secret], threshold=threshold, holders=threshold, rand=seeded(seed))
        points = {slot + 1: int(shares[slot, 0, 0]) for slot in range(threshold - 1)}
        last = {interpolate_at(threshold, points | {0: digit}) for digit in range(0, 2**15, 1021)}
        assert len(last) == len(range(0, 2**15, 1021)), "another secret must mean another missing share"
        true = digits_of(secret)[0]
        assert interpolate_at(threshold, points | {0: true}) == shares[threshold - 1, 0, 0]

    def test_one_share_is_uniform_whatever_the_secret(self) -> None:
        """t = 2: the first share is secret + coefficient, so it runs through the field exactly once."""
        everything = np.arange(SHAMIR_PRIME, dtype="<u2")
        for secret in (bytes(32), b"\xff" * 32):
            many = [secret] * (SHAMIR_PRIME // 18 + 1)
            script = np.concatenate([everything, np.zeros(18 * len(many) - SHAMIR_PRIME, dtype="<u2")])
            shares = shamir.share(many, threshold=2, holders=2, rand=scripted(script.tobytes()))
            column = shares[0].ravel()[:SHAMIR_PRIME].astype(np.int64)
            digits = np.array(digits_of(secret) * len(many))[:SHAMIR_PRIME]
            assert sorted((column - digits) % SHAMIR_PRIME) == list(range(SHAMIR_PRIME))


class TestReconstruct:
    @given(secret=secrets32, seed=st.integers(0, 2**32), data=st.data())
    def test_a_wrong_share_never_gives_the_secret(self, secret: bytes, seed: int, data: st.DataObject) -> None:
        shares = shamir.share([secret], threshold=3, holders=5, rand=seeded(seed))
        slots = list(data.draw(st.permutations(range(5)))[:3])
        wrong = shares[slots].copy()
        row, limb = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 17))
        wrong[row, 0, limb] = (int(wrong[row, 0, limb]) + data.draw(st.integers(1, SHAMIR_PRIME - 1))) % SHAMIR_PRIME
        assert shamir.reconstruct(slots, wrong) != [secret]

    @given(secret=secrets32, seed=st.integers(0, 2**32))
    def test_shares_in_the_wrong_slots_never_give_the_secret(self, secret: bytes, seed: int) -> None:
        shares = shamir.share([secret], threshold=2, holders=3, rand=seeded(seed))
        assume((shares[0] != shares[1]).any())
        assert shamir.reconstruct([1, 0], shares[:2]) != [secret]

    @given(secrets=st.lists(secrets32, min_size=1, max_size=4), data=st.data())
    def test_only_digits_that_a_secret_has_are_accepted(self, secrets: list[bytes], data: st.DataObject) -> None:
        """With t = 1 a share is the digits themselves; one bad secret does not spoil the others."""
        digits = [digits_of(secret) for secret in secrets]
        place, limb = data.draw(st.integers(0, len(secrets) - 1)), data.draw(st.integers(0, 17))
        digits[place][limb] = data.draw(st.integers(0, 3) | st.integers(0, SHAMIR_PRIME - 1))
        good = digits[place][limb] < (2**15 if limb < 17 else 2)
        found = shamir.reconstruct([0], np.array([digits], dtype=np.uint16))
        for i, secret in enumerate(found):
            assert (secret is None) == (i == place and not good)
            assert secret is None or digits_of(secret) == digits[i]

    @pytest.mark.parametrize(("limb", "value"), [(0, 0x8000), (16, 0x8000), (17, 2), (17, 0x8000), (3, 65520)])
    def test_digits_just_out_of_range(self, limb: int, value: int) -> None:
        shares = np.zeros((1, 1, 18), dtype=np.uint16)
        assert shamir.reconstruct([0], shares) == [bytes(32)]
        shares[0, 0, limb] = value
        assert shamir.reconstruct([0], shares) == [None]
        shares[0, 0, limb] = value - 1 if value != 65520 else 0x7FFF
        if limb != 17 or value == 2:
            (secret,) = shamir.reconstruct([0], shares)
            assert secret is not None
            assert digits_of(secret) == shares[0, 0].tolist()

    @pytest.mark.parametrize("slots", [[0, 0], [0], [0, 1, 2]])
    def test_slots_must_be_distinct_and_match(self, slots: list[int]) -> None:
        shares = shamir.share([bytes(32)], threshold=2, holders=3, rand=seeded(0))
        with pytest.raises(ValueError, match="distinct"):
            shamir.reconstruct(slots, shares[:2])

    @pytest.mark.parametrize("slots", [[-1, 1], [0, 65520], [0, 65521]])
    def test_slots_out_of_range_are_refused(self, slots: list[int]) -> None:
        """Slot -1 would be x = 0, where the share *is* the secret."""
        shares = shamir.share([bytes(32)], threshold=2, holders=3, rand=seeded(0))
        with pytest.raises(ValueError, match="slot"):
            shamir.reconstruct(slots, shares[:2])


class TestDecode:
    @given(st.integers(0, 4), st.binary(max_size=200))
    def test_exactly_field_elements_of_the_right_count(self, count: int, data: bytes) -> None:
        elements = np.frombuffer(data[: len(data) // 2 * 2], dtype="<u2")
        if len(data) == 36 * count and (elements < SHAMIR_PRIME).all():
            assert shamir.decode_shares(data, count).tobytes() == data
        else:
            with pytest.raises(ValueError, match=r"shares take|field"):
                shamir.decode_shares(data, count)

    @given(sharings())
    def test_round_trip(self, sharing: tuple[list[bytes], int, int, int]) -> None:
        secrets, threshold, holders, seed = sharing
        shares = shamir.share(secrets, threshold=threshold, holders=holders, rand=seeded(seed))
        for row in shares:
            assert len(row.tobytes()) == shamir.SHARE_BYTES * len(secrets)
            assert (shamir.decode_shares(row.tobytes(), len(secrets)) == row).all()

    @pytest.mark.parametrize(("value", "good"), [(65520, True), (65521, False), (65535, False)])
    def test_the_field_bound(self, value: int, good: bool) -> None:
        data = bytes(34) + value.to_bytes(2, "little")
        if good:
            assert shamir.decode_shares(data, 1)[0, 17] == value
        else:
            with pytest.raises(ValueError, match="field"):
                shamir.decode_shares(data, 1)

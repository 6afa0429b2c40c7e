"""Key agreement, derivation, sealing and signatures against official vectors and slow oracles."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.primitives.keys import (
    CLASSICAL,
    HYBRID,
    SEAL_OVERHEAD_BYTES,
    AgreementKey,
    SigningKey,
    all_distinct,
    check_public_key,
    derive,
    encapsulate,
    parts,
    seal,
    unseal,
    verifies,
)
from protocols.roster import Identity

from .oracles import FIELD_PRIME, hkdf_sha256, load_vectors, montgomery_multiple, x25519_ladder

X25519 = load_vectors("rfc7748_x25519.json")
REFUSED = load_vectors("x25519_refused.json")
BASE_POINT = (9).to_bytes(32, "little")

keys32 = st.binary(min_size=32, max_size=32)


def flipped(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(len(data), "little")


class TestAgreement:
    @pytest.mark.parametrize("vector", X25519["scalar_multiplication"])
    def test_rfc_7748_section_5_2(self, vector: dict[str, Any]) -> None:
        scalar, u, result = (bytes.fromhex(vector[name]) for name in ("scalar", "u", "result"))
        assert x25519_ladder(scalar, u) == result
        if vector["canonical_u"]:
            assert AgreementKey(scalar, CLASSICAL).agree(u) == result
        else:
            with pytest.raises(ValueError, match="canonical"):
                AgreementKey(scalar, CLASSICAL).agree(u)

    def test_rfc_7748_iteration(self) -> None:
        vector = X25519["iterated"]
        scalar = u = bytes.fromhex(vector["start"])
        for step in range(1000):
            scalar, u = AgreementKey(scalar, CLASSICAL).agree(u), scalar
            if step == 0:
                assert scalar.hex() == vector["after_1"]
        assert scalar.hex() == vector["after_1000"]

    def test_rfc_7748_section_6_1(self) -> None:
        vector = {name: bytes.fromhex(value) for name, value in X25519["agreement"].items()}
        alice, bob = AgreementKey(vector["alice_private"], CLASSICAL), AgreementKey(vector["bob_private"], CLASSICAL)
        assert (alice.public, bob.public) == (vector["alice_public"], vector["bob_public"])
        assert alice.agree(bob.public) == bob.agree(alice.public) == vector["shared"]

    @settings(max_examples=20)
    @given(a=keys32, b=keys32)
    def test_agrees_with_the_ladder_from_both_ends(self, a: bytes, b: bytes) -> None:
        left, right = AgreementKey(a, CLASSICAL), AgreementKey(b, CLASSICAL)
        assert left.public == x25519_ladder(a, BASE_POINT)
        assert left.agree(right.public) == right.agree(left.public) == x25519_ladder(a, right.public)

    @pytest.mark.parametrize("name", REFUSED["low_order"])
    @given(private=keys32)
    @settings(max_examples=5)
    def test_low_order_points_are_refused(self, name: str, private: bytes) -> None:
        public = bytes.fromhex(REFUSED["low_order"][name])
        assert montgomery_multiple(8, int.from_bytes(public, "little")) == 0
        with pytest.raises(ValueError, match=r"."):
            AgreementKey(private, CLASSICAL).agree(public)

    @pytest.mark.parametrize("name", REFUSED["low_order"])
    def test_low_order_points_are_refused_before_any_private_key_meets_them(self, name: str) -> None:
        with pytest.raises(ValueError, match="low order"):
            check_public_key(bytes.fromhex(REFUSED["low_order"][name]), CLASSICAL)

    @pytest.mark.parametrize("name", [*REFUSED["low_order_not_canonical"], *REFUSED["not_canonical"]])
    def test_non_canonical_keys_are_refused(self, name: str) -> None:
        public = bytes.fromhex((REFUSED["low_order_not_canonical"] | REFUSED["not_canonical"])[name])
        assert int.from_bytes(public, "little") >= FIELD_PRIME
        with pytest.raises(ValueError, match="canonical"):
            AgreementKey(bytes(32), CLASSICAL).agree(public)

    @given(private=keys32)
    def test_every_other_encoding_of_an_honest_key_is_refused(self, private: bytes) -> None:
        public = AgreementKey(private, CLASSICAL).public
        check_public_key(public, CLASSICAL)
        number = int.from_bytes(public, "little")
        aliases = [number | 1 << 255, number + FIELD_PRIME]
        for alias in aliases:
            if alias < 2**256:
                with pytest.raises(ValueError, match="canonical"):
                    check_public_key(alias.to_bytes(32, "little"), CLASSICAL)

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_wrong_lengths_are_refused(self, size: int) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            check_public_key(b"\x09" * size, CLASSICAL)

    def test_the_largest_canonical_key_that_is_not_low_order_is_accepted(self) -> None:
        check_public_key((FIELD_PRIME - 2).to_bytes(32, "little"), CLASSICAL)


class TestDistinct:
    # Few parts, so that they repeat; long ones differ in the first bytes, in the last, or not at all.
    POINTS = tuple(bytes([i]) * 32 for i in range(6))
    LATTICES = tuple(bytes([first]) * 1183 + bytes([last]) for first in range(3) for last in range(2))
    PUBLICS = st.lists(st.sampled_from(POINTS), max_size=5) | st.lists(
        st.builds(bytes.__add__, st.sampled_from(POINTS), st.sampled_from(LATTICES)), max_size=5
    )

    @given(publics=PUBLICS)
    def test_whole_parts_count(self, publics: list[bytes]) -> None:
        every = [parts(public) for public in publics]
        assert all_distinct(publics) == all(set(a).isdisjoint(b) for a, b in combinations(every, 2))


class TestDerive:
    @pytest.mark.parametrize("vector", load_vectors("rfc5869_hkdf_sha256.json"), ids=lambda v: v["name"])
    def test_the_oracle_keeps_rfc_5869(self, vector: dict[str, str]) -> None:
        okm = bytes.fromhex(vector["okm"])
        ikm, salt, info = (bytes.fromhex(vector[name]) for name in ("ikm", "salt", "info"))
        assert hkdf_sha256(ikm, salt=salt, info=info, length=len(okm)) == okm

    @given(
        secret=keys32,
        context=keys32,
        usage=st.sampled_from([b"pairwise/channel", b"pairwise/self-mask"]),
        ids=st.lists(st.integers(0, 2**31 - 1), max_size=3),
    )
    def test_equals_hkdf_of_label_usage_and_ids(
        self, secret: bytes, context: bytes, usage: bytes, ids: list[int]
    ) -> None:
        info = b"secagg/v1/" + usage + b"".join(client.to_bytes(4, "big") for client in ids)
        expected = hkdf_sha256(secret, salt=context, info=info, length=32)
        assert derive(secret, context=context, usage=usage, ids=tuple(ids)) == expected

    def test_every_input_separates_keys(self) -> None:
        results = {
            derive(secret, context=context, usage=usage, ids=ids)
            for secret in (bytes(32), b"\x01" * 32)
            for context in (bytes(32), b"\x01" * 32)
            for usage in (b"pairwise/channel", b"pairwise/pair-mask")
            for ids in ((1, 2), (2, 1), (1,), ())
        }
        assert len(results) == 2 * 2 * 2 * 4


class TestSeal:
    @given(key=keys32, plain=st.binary(max_size=100), associated=keys32)
    def test_round_trip_and_size(self, key: bytes, plain: bytes, associated: bytes) -> None:
        sealed = seal(key, plain, associated=associated)
        assert len(sealed) == len(plain) + SEAL_OVERHEAD_BYTES
        assert unseal(key, sealed, associated=associated) == plain

    @given(key=keys32, plain=st.binary(max_size=100), associated=keys32, data=st.data())
    def test_any_flipped_bit_of_any_input_is_noticed(
        self, key: bytes, plain: bytes, associated: bytes, data: st.DataObject
    ) -> None:
        sealed = seal(key, plain, associated=associated)
        inputs = {"key": key, "sealed": sealed, "associated": associated}
        name = data.draw(st.sampled_from(sorted(inputs)))
        inputs[name] = flipped(inputs[name], data.draw(st.integers(0, 8 * len(inputs[name]) - 1)))
        with pytest.raises(ValueError, match="does not open"):
            unseal(inputs["key"], inputs["sealed"], associated=inputs["associated"])

    @pytest.mark.parametrize("size", [0, 1, 15])
    def test_too_short_to_be_sealed(self, size: int) -> None:
        with pytest.raises(ValueError, match="does not open"):
            unseal(bytes(32), bytes(size), associated=b"")


class TestSignatures:
    @pytest.mark.parametrize("vector", load_vectors("rfc8032_ed25519.json"), ids=lambda v: v["name"])
    def test_rfc_8032(self, vector: dict[str, str]) -> None:
        private, public, message, signature = (
            bytes.fromhex(vector[name]) for name in ("private", "public", "message", "signature")
        )
        key = SigningKey(private)
        assert key.public == public
        assert key.sign(message) == signature
        assert verifies(public, signature, message)

    @given(private=keys32, message=st.binary(min_size=1, max_size=64), data=st.data())
    def test_any_flipped_bit_of_signature_or_message_is_noticed(
        self, private: bytes, message: bytes, data: st.DataObject
    ) -> None:
        key = SigningKey(private)
        signature = key.sign(message)
        assert not verifies(key.public, flipped(signature, data.draw(st.integers(0, 511))), message)
        assert not verifies(key.public, signature, flipped(message, data.draw(st.integers(0, 8 * len(message) - 1))))

    def test_another_key_does_not_verify(self) -> None:
        keys = [SigningKey(bytes((i,)) * 32) for i in range(3)]
        for signer, other in combinations(keys, 2):
            assert not verifies(other.public, signer.sign(b"text"), b"text")

    @pytest.mark.parametrize("size", [0, 63, 65])
    def test_wrong_signature_lengths_do_not_verify(self, size: int) -> None:
        assert not verifies(SigningKey(bytes(32)).public, bytes(size), b"text")


class TestHybrid:
    """ML-KEM-768 beside X25519, from the same 32 bytes."""

    @settings(max_examples=20)
    @given(secret=st.binary(min_size=32, max_size=32))
    def test_a_ciphertext_carries_a_secret_to_one_key_alone(self, secret: bytes) -> None:
        key = AgreementKey(secret, HYBRID)
        check_public_key(key.public, HYBRID)
        assert AgreementKey(secret, HYBRID).public == key.public
        shared, ciphertext = encapsulate(key.public, HYBRID)
        assert (len(key.public), len(ciphertext), len(shared)) == (
            HYBRID.public_key_bytes,
            HYBRID.ciphertext_bytes,
            32,
        )
        assert key.decapsulate(ciphertext) == shared
        damaged = bytes((ciphertext[0] ^ 1,)) + ciphertext[1:]
        other = AgreementKey(bytes(b ^ 1 for b in secret), HYBRID)
        assert len({shared, key.decapsulate(damaged), other.decapsulate(ciphertext)}) == 3
        assert encapsulate(key.public, HYBRID)[0] != shared

    def test_both_halves_of_a_key_pair_follow_from_the_secret_by_labels_of_their_own(self) -> None:
        secret = bytes(range(32))
        point = hkdf_sha256(secret, salt=b"", info=b"secagg/v1/key/x25519", length=32)
        seed = hkdf_sha256(secret, salt=b"", info=b"secagg/v1/key/ml-kem-768", length=64)
        kem = MLKEM768PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()
        assert AgreementKey(secret, HYBRID).public == AgreementKey(point, CLASSICAL).public + kem

    def test_the_classical_suite_has_empty_ciphertexts(self) -> None:
        key = AgreementKey(bytes(range(32)), CLASSICAL)
        assert encapsulate(key.public, CLASSICAL) == (b"", b"")
        assert key.decapsulate(b"") == b""
        with pytest.raises(ValueError, match="no ciphertexts"):
            key.decapsulate(b"x")

    @pytest.mark.parametrize("size", [0, 1087, 1089])
    def test_ciphertexts_of_another_length_are_refused(self, size: int) -> None:
        with pytest.raises(ValueError, match="ciphertext"):
            AgreementKey(bytes(range(32)), HYBRID).decapsulate(bytes(size))

    @pytest.mark.parametrize("coefficient", [3329, 4095])
    @pytest.mark.parametrize("place", [0, 767])
    def test_encapsulation_keys_with_unreduced_coefficients_are_refused(self, coefficient: int, place: int) -> None:
        """FIPS 203, 7.2, the modulus check: two coefficients of 12 bits in three bytes."""
        public = bytearray(AgreementKey(bytes(range(32)), HYBRID).public)
        first = 32 + 3 * (place // 2)
        pair = int.from_bytes(public[first : first + 3], "little")
        shift = 12 * (place % 2)
        pair = pair & ~(0xFFF << shift) | coefficient << shift
        public[first : first + 3] = pair.to_bytes(3, "little")
        with pytest.raises(ValueError, match="canonical"):
            check_public_key(bytes(public), HYBRID)
        with pytest.raises(ValueError):
            encapsulate(bytes(public), HYBRID)

    def test_the_x25519_part_is_checked_too(self) -> None:
        public = AgreementKey(bytes(range(32)), HYBRID).public
        with pytest.raises(ValueError, match="low order"):
            check_public_key(bytes(32) + public[32:], HYBRID)
        with pytest.raises(ValueError, match="1216 bytes"):
            check_public_key(public[:32], HYBRID)


class TestSecrecy:
    @pytest.mark.parametrize("kind", [partial(AgreementKey, suite=HYBRID), SigningKey, Identity])
    def test_neither_printed_nor_pickled_nor_copied(self, kind: Callable[[bytes], AgreementKey | SigningKey]) -> None:
        private = bytes(range(32))
        key = kind(private)
        assert repr(key) == str(key) == f"<{type(key).__name__}>"
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="secrets"):
                pickle.dumps(key, protocol)
        with pytest.raises(TypeError, match="secrets"):
            copy.deepcopy(key)

    def test_identities_are_drawn_from_rand(self) -> None:
        asked: list[int] = []

        def rand(size: int) -> bytes:
            asked.append(size)
            return bytes(range(size))

        assert Identity.generate(rand=rand).public == SigningKey(bytes(range(32))).public
        assert asked == [32]
        assert Identity.generate().public != Identity.generate().public

"""Identities, bundle digests and the commitment to all bundles."""

from hashlib import sha256
from itertools import combinations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import ClientId, Identity, InvalidSignatureError, Roster
from protocols.roster import bundle_digest, bundle_root, signed_text
from protocols.wire import KeyBundle

from .messages import bundles

ALICE, BOB, CAROL = (Identity(bytes((i,)) * 32) for i in range(1, 4))
ROSTER = Roster({ClientId(1): ALICE.public, ClientId(2): BOB.public})


def changed(bundle: KeyBundle, field: str) -> KeyBundle:
    value = getattr(bundle, field)
    other = value + 1 if isinstance(value, int) else bytes((value[0] ^ 1,)) + value[1:]
    return msgspec.structs.replace(bundle, **{field: other})


class TestRoster:
    def test_is_a_mapping_in_increasing_order_whatever_the_input_order(self) -> None:
        other = Roster({ClientId(2): BOB.public, ClientId(1): ALICE.public})
        assert list(other) == list(ROSTER) == [1, 2]
        assert len(ROSTER) == 2
        assert ROSTER[ClientId(2)] == BOB.public
        assert ROSTER.get(ClientId(3)) is None
        assert other.digest == ROSTER.digest

    def test_later_changes_of_the_input_do_not_show(self) -> None:
        pinned = {ClientId(1): ALICE.public, ClientId(2): BOB.public}
        roster = Roster(pinned)
        pinned[ClientId(3)] = CAROL.public
        assert len(roster) == 2
        assert roster.digest == ROSTER.digest

    @pytest.mark.parametrize(
        "pinned",
        [
            {1: ALICE.public, 2: CAROL.public},
            {1: ALICE.public, 3: BOB.public},
            {1: BOB.public, 2: ALICE.public},
            {1: ALICE.public, 2: BOB.public, 3: CAROL.public},
        ],
    )
    def test_the_digest_covers_ids_and_keys(self, pinned: dict[ClientId, bytes]) -> None:
        assert Roster(pinned).digest != ROSTER.digest

    @pytest.mark.parametrize(
        ("pinned", "message"),
        [
            ({0: ALICE.public, 2: BOB.public}, "from 1 to 2147483647"),
            ({-1: ALICE.public, 2: BOB.public}, "from 1 to 2147483647"),
            ({2**31: ALICE.public, 2: BOB.public}, "from 1 to 2147483647"),
            ({1: ALICE.public[:31], 2: BOB.public}, "32 bytes, got 31"),
            ({1: ALICE.public + b"\x00", 2: BOB.public}, "32 bytes, got 33"),
            ({1: ALICE.public, 2: ALICE.public}, "same identity"),
            ({1: ALICE.public}, "at least two"),
            ({}, "at least two"),
        ],
    )
    def test_bad_rosters(self, pinned: dict[ClientId, bytes], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Roster(pinned)

    def test_extreme_ids(self) -> None:
        assert len(Roster({ClientId(1): ALICE.public, ClientId(2**31 - 1): BOB.public})) == 2


class TestSignatures:
    DIGEST = sha256(b"text").digest()

    def test_only_the_named_client_over_this_kind_and_digest(self) -> None:
        good = ALICE.sign(signed_text("Unmask", self.DIGEST))
        ROSTER.check_signature(ClientId(1), "Unmask", self.DIGEST, good)
        for client, kind, digest, signature in [
            (2, "Unmask", self.DIGEST, good),
            (3, "Unmask", self.DIGEST, good),  # not on the roster
            (1, "MaskedInput", self.DIGEST, good),
            (1, "Unmask", sha256(b"another").digest(), good),
            (1, "Unmask", self.DIGEST, BOB.sign(signed_text("Unmask", self.DIGEST))),
            (1, "Unmask", self.DIGEST, bytes(64)),
        ]:
            with pytest.raises(InvalidSignatureError, match=f"client {client}") as caught:
                ROSTER.check_signature(ClientId(client), kind, digest, signature)
            assert caught.value.client_id == client

    def test_kinds_cannot_run_into_digests(self) -> None:
        """The text ends with 32 digest bytes, so texts of two kinds are equal only if the kinds are."""
        kinds = ["KeyBundle", "ShareKeys", "MaskedInput", "ConsistencyCheck", "Unmask"]
        texts = {kind: signed_text(kind, self.DIGEST) for kind in kinds}
        for one, other in combinations(kinds, 2):
            assert texts[one] != texts[other]
            assert not texts[one][:-32].endswith(other.encode())


class TestBundles:
    @settings(max_examples=30)
    @given(bundles)
    def test_the_digest_covers_everything_but_the_signature(self, bundle: KeyBundle) -> None:
        digest = bundle_digest(bundle, ROSTER)
        for field in ("client", "serial", "fresh", "channel_key", "mask_key"):
            assert bundle_digest(changed(bundle, field), ROSTER) != digest
        assert bundle_digest(changed(bundle, "signature"), ROSTER) == digest
        other_roster = Roster({ClientId(1): ALICE.public, ClientId(2): CAROL.public})
        assert bundle_digest(bundle, other_roster) != digest

    @settings(max_examples=30)
    @given(st.lists(bundles, min_size=1, max_size=9), st.data())
    def test_the_root_covers_every_bundle_signatures_included(
        self, shown: list[KeyBundle], data: st.DataObject
    ) -> None:
        root = bundle_root(shown)
        place = data.draw(st.integers(0, len(shown) - 1))
        field = data.draw(st.sampled_from(["client", "serial", "fresh", "channel_key", "mask_key", "signature"]))
        other = [*shown[:place], changed(shown[place], field), *shown[place + 1 :]]
        assert bundle_root(other) != root
        assert bundle_root([*shown, shown[-1]]) != root
        if len(shown) > 1:
            assert bundle_root(shown[:-1]) != root
            assert (bundle_root(shown[::-1]) == root) == (shown[::-1] == shown)

    @pytest.mark.parametrize("count", range(1, 18))
    def test_the_root_is_a_merkle_tree(self, count: int) -> None:
        """Against a recursive definition: the left subtree is the largest complete one."""
        key = bytes(32)
        shown = [
            KeyBundle(client=i + 1, serial=1, fresh=key, channel_key=key, mask_key=key, signature=bytes(64))
            for i in range(count)
        ]

        def root(part: list[KeyBundle]) -> bytes:
            if len(part) == 1:
                return sha256(b"\x00" + msgspec.msgpack.encode(part[0])).digest()
            left = 1 << (len(part) - 1).bit_length() - 1
            return sha256(b"\x01" + root(part[:left]) + root(part[left:])).digest()

        assert bundle_root(shown) == root(shown)

"""What both sides derive: every key from the documented label, every digest over everything."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import msgspec

from protocols import ClientId, Identity, Roster
from protocols.pairwise import round_context
from protocols.pairwise.rules import Rules
from protocols.primitives.keys import HYBRID, AgreementKey
from protocols.roster import bundle_root
from protocols.wire import KeyBundle
from tests.rounds import round_config

from .oracles import hkdf_sha256

CONFIG = round_config(3, round_id=bytes(32))
ROSTER = Roster({ClientId(i): Identity(bytes((i,)) * 32).public for i in range(1, 5)})
KEYS = {ClientId(i): AgreementKey(bytes((i, 7)) * 16, HYBRID) for i in range(1, 4)}
BUNDLES = [
    KeyBundle(
        client=client,
        serial=1,
        fresh=bytes((client,)) * 32,
        channel_key=AgreementKey(bytes((client, 8)) * 16, HYBRID).public,
        mask_key=key.public,
        signature=bytes(64),
    )
    for client, key in KEYS.items()
]
SECRET = bytes(range(32))


def bound() -> Rules:
    rules = Rules(CONFIG, ROSTER)
    rules.bind(BUNDLES)
    return rules


def label(usage: bytes, *ids: int) -> bytes:
    return b"secagg/v1/pairwise/" + usage + b"".join(client.to_bytes(4, "big") for client in ids)


class TestContexts:
    def test_the_first_context_covers_configuration_and_roster(self) -> None:
        expected = sha256(b"secagg/v1/pairwise/context0" + CONFIG.digest() + ROSTER.digest).digest()
        assert round_context(CONFIG, ROSTER) == Rules(CONFIG, ROSTER).context == expected
        fewer = Roster({client: ROSTER[client] for client in list(ROSTER)[:3]})
        contexts = {
            round_context(CONFIG, ROSTER),
            round_context(CONFIG, fewer),
            round_context(replace(CONFIG, binding=b"\x01" * 32), ROSTER),
        }
        assert len(contexts) == 3

    def test_the_second_context_covers_the_first_and_all_bundles(self) -> None:
        first = round_context(CONFIG, ROSTER)
        assert bound().context == sha256(b"secagg/v1/pairwise/context" + first + bundle_root(BUNDLES)).digest()
        other = Rules(CONFIG, ROSTER)
        other.bind([*BUNDLES[:2], msgspec.structs.replace(BUNDLES[2], fresh=bytes(32))])
        assert other.context != bound().context

    def test_a_view_covers_cohort_and_survivors_apart(self) -> None:
        rules = bound()
        views = [
            ((1, 2, 3), (1, 2, 3)),
            ((1, 2, 3), (1, 2)),
            ((1, 2), (1, 2)),
            ((1, 2, 3), ()),
            ((1, 2), (3,)),
            ((1,), (2, 3)),
        ]
        digests = {rules.view([ClientId(c) for c in u2], [ClientId(c) for c in u3]) for u2, u3 in views}
        assert len(digests) == len(views)
        assert rules.view([ClientId(2), ClientId(1)], [ClientId(1)]) == rules.view(
            [ClientId(1), ClientId(2)], [ClientId(1)]
        )


class TestKeys:
    """The commitment is public. If any two of these were equal, it would unmask somebody."""

    def test_from_the_self_seed(self) -> None:
        rules, client = bound(), ClientId(2)
        for found, usage in [
            (rules.seed_commitment(client, SECRET), b"self-seed-commitment"),
            (rules.self_mask_seed(client, SECRET), b"self-mask"),
        ]:
            assert found == hkdf_sha256(SECRET, salt=rules.context, info=label(usage, 2), length=32)
        assert len({f(ClientId(c), SECRET) for f in (rules.seed_commitment, rules.self_mask_seed) for c in (1, 2)}) == 4

    def test_from_the_mask_keys(self) -> None:
        """From X25519 and both halves, in the order of the ids; each half from the 32 bytes of one mask key."""
        rules = bound()
        one, two, three = (ClientId(i) for i in range(1, 4))
        shared = KEYS[one].agree(KEYS[two].public)
        halves = {one: rules.pair_half(SECRET, one, two), two: rules.pair_half(SECRET, two, one)}
        assert halves[one] == hkdf_sha256(SECRET, salt=rules.context, info=label(b"pair-half", 1, 2), length=32)
        assert halves[one] != halves[two] != rules.pair_half(SECRET, two, three)
        secret = shared + halves[one] + halves[two]
        expected = hkdf_sha256(secret, salt=rules.context, info=label(b"pair-mask", 1, 2), length=32)
        assert rules.pair_mask_seed(shared, halves) == expected
        assert rules.pair_mask_seed(shared, dict(reversed(halves.items()))) == expected
        assert rules.pair_mask_seed(shared, {one: halves[two], two: halves[one]}) != expected

    def test_another_round_has_other_keys(self) -> None:
        rules, other = bound(), Rules(replace(CONFIG, round_id=b"\x01" * 32), ROSTER)
        other.bind(BUNDLES)
        one, two = ClientId(1), ClientId(2)
        assert rules.seed_commitment(one, SECRET) != other.seed_commitment(one, SECRET)
        assert rules.self_mask_seed(one, SECRET) != other.self_mask_seed(one, SECRET)
        assert rules.pair_half(SECRET, one, two) != other.pair_half(SECRET, one, two)
        assert rules.half_key(SECRET, one, two) != other.half_key(SECRET, one, two) != other.half_key(SECRET, two, one)
        halves = {one: SECRET, two: SECRET}
        assert rules.pair_mask_seed(SECRET, halves) != other.pair_mask_seed(SECRET, halves)

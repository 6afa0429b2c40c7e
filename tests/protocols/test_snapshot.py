"""Sessions that are put away between any two messages: the round is the same, and a state serves once."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import (
    ClientId,
    ClientPolicy,
    History,
    Identity,
    InconsistentViewError,
    KeysAdvertised,
    LocalProtocolError,
    PairwiseClient,
    Phase,
    ProtocolError,
    TooFewClientsError,
)
from protocols.pairwise import OneTimeKeys
from protocols.pairwise.client import _Secrets
from protocols.primitives.keys import SUITES
from protocols.snapshot import AT_REST, Opened, open_keys, open_session, seal_keys, seal_session
from tests.rounds import Round, random_vectors, round_config

CONTEXT = b"a test"


@dataclass
class MovingRound(Round):
    """A round whose clients are put away before every message, and opened by something that has only their files."""

    sealed: list[tuple[ClientId, bytes, bytes]] = field(default_factory=list)  # client, ciphertext, key

    def to_client(self, client: ClientId, data: bytes) -> None:
        if self.clients[client].phase in AT_REST:
            before = self.clients[client]
            self.clients[client] = self.move(client).session
            assert before.phase is Phase.ABORTED
            assert before._secrets is None
        super().to_client(client, data)

    def seal(self, client: ClientId) -> tuple[bytes, bytes]:
        key = os.urandom(32)
        sealed = seal_session(self.clients[client], key=key, context=CONTEXT)
        self.sealed.append((client, sealed, key))
        return sealed, key

    def open(self, client: ClientId, sealed: bytes, key: bytes, context: bytes = CONTEXT) -> Opened:
        floors = ClientPolicy(min_survivors=self.config.min_survivors, corrupt_holders=self.config.corrupt_holders)
        return open_session(
            sealed,
            key=key,
            context=context,
            identity=self.identities[client],
            roster=self.roster,
            policy=floors,
            history=self.histories.get(client, History()),
        )

    def move(self, client: ClientId) -> Opened:
        return self.open(client, *self.seal(client))


@given(data=st.data())
@settings(max_examples=40)
def test_the_sum_is_exact_or_the_error_typed(data: st.DataObject) -> None:
    """Under any pattern of silence, in both suites, on the complete graph and on a ring."""
    cohort = data.draw(st.integers(3, 7), label="cohort")
    suite = data.draw(st.sampled_from(sorted(SUITES)), label="suite")
    ring = cohort == 7 and data.draw(st.booleans(), label="ring")
    config = round_config(cohort, suite=suite, length=9, **({"degree": 4} if ring else {}))
    if not ring and data.draw(st.booleans(), label="removable"):
        config = replace(config, removable=cohort - config.min_survivors)
    silent = data.draw(
        st.dictionaries(st.integers(1, cohort), st.integers(0, 4), max_size=cohort // 2), label="silent from"
    )
    trips = {"now": 0}

    def network(sender: ClientId | None, receiver: ClientId | None, message: bytes) -> list[bytes]:
        client = sender or receiver
        return [] if client in silent and trips["now"] >= silent[client] else [message]

    moving = MovingRound(config, random_vectors(cohort, 9), network=network)
    moving.start()
    with suppress(ProtocolError):
        while moving.result is None:
            trips["now"] += 1
            moving.step()
    if moving.result is None:
        assert len(silent) > cohort - config.min_survivors or moving.errors or ring
    else:
        np.testing.assert_array_equal(moving.result.vector, moving.expected(moving.result.survivors))
        missing = cohort - len(moving.result.survivors)
        for seeds in moving.result.removed.values():
            assert len(seeds) == config.removable - missing
    assert all(isinstance(error, TooFewClientsError) for error in moving.errors.values())


def test_without_silence_everybody_survives() -> None:
    moving = MovingRound(round_config(4), random_vectors(4, 5))
    assert moving.run().survivors == frozenset({1, 2, 3, 4})
    assert len(moving.sealed) == 4 * 4  # before each of the four messages that a client gets
    np.testing.assert_array_equal(moving.result.vector, moving.expected(moving.result.survivors))  # type: ignore[union-attr]


def test_a_snapshot_holds_every_attribute_of_a_session() -> None:
    """Whoever gives a session a new attribute must decide what becomes of it here."""
    whole = Round(round_config(4), random_vectors(4, 5))
    moved = MovingRound(round_config(4), random_vectors(4, 5))
    for phase in AT_REST:
        whole.advance(phase)
        moved.advance(phase)
        one, other = whole.clients[ClientId(2)], moved.move(ClientId(2)).session
        moved.clients[ClientId(2)] = other
        assert one.phase is other.phase
        assert vars(one).keys() == vars(other).keys()
        assert vars(one._rules).keys() == vars(other._rules).keys()
        assert vars(one._secrets).keys() == vars(other._secrets).keys()
        assert {name for name, value in vars(one).items() if value is None} == {
            name for name, value in vars(other).items() if value is None
        }
    names = {"channel_key", "mask_key", "self_seed", "channels", "pairs", "pair_seeds", "links", "held"}
    fresh = Round(round_config(4), random_vectors(4, 5))
    fresh.start()
    assert vars(fresh.clients[ClientId(1)]._secrets).keys() == names
    assert isinstance(fresh.clients[ClientId(1)]._secrets, _Secrets)


@pytest.mark.parametrize("phase", AT_REST)
def test_secrets_move_unchanged(phase: Phase) -> None:
    moving = MovingRound(replace(round_config(4, min_survivors=3), removable=1), random_vectors(4, 5))
    moving.advance(phase)

    def secrets(session: PairwiseClient) -> dict[str, object]:
        known = dict(vars(session._secrets))
        return {name: getattr(value, "secret", value) for name, value in known.items()}

    before = {name: dict(value) if isinstance(value, dict) else value
              for name, value in secrets(moving.clients[ClientId(1)]).items()}  # fmt: skip
    opened = moving.move(ClientId(1))
    assert secrets(opened.session) == before
    assert opened.config == moving.config
    for value in before.values():
        for secret in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
            assert bytes(secret) not in moving.sealed[-1][1]  # type: ignore[call-overload]


def test_a_sealed_session_is_dead_here() -> None:
    moving = MovingRound(round_config(4), random_vectors(4, 5))
    moving.advance(Phase.SHARE_KEYS)
    session = moving.clients[ClientId(1)]
    moving.seal(ClientId(1))
    assert session._secrets is None
    with pytest.raises(LocalProtocolError):
        session.receive(b"anything")
    with pytest.raises(LocalProtocolError):
        seal_session(session, key=os.urandom(32), context=CONTEXT)


def test_only_a_session_at_rest_is_sealed() -> None:
    """Not before it starts, not while a record waits to be made durable, not between shares and contribution."""
    ready = Round(round_config(4), random_vectors(4, 5)).clients[ClientId(1)]
    waiting = Round(round_config(4), random_vectors(4, 5)).clients[ClientId(1)]
    waiting.start()  # its record is not durable yet
    asked = Round(round_config(4), random_vectors(4, 5))
    asked.follow = lambda client, event: (  # type: ignore[method-assign, assignment]
        None if type(event).__name__ == "ContributionNeeded" else Round.follow(asked, client, event)
    )
    asked.advance(Phase.MASKED_INPUT)
    for session in (ready, waiting, asked.clients[ClientId(1)]):
        with pytest.raises(LocalProtocolError, match="cannot be put away"):
            seal_session(session, key=os.urandom(32), context=CONTEXT)
        assert session.phase is Phase.ABORTED
        assert session._secrets is None


def test_only_the_right_key_and_context_open_it() -> None:
    moving = MovingRound(round_config(4), random_vectors(4, 5))
    moving.advance(Phase.SHARE_KEYS)
    sealed, key = moving.seal(ClientId(1))
    for bad_sealed, bad_key, bad_context in [
        (sealed, os.urandom(32), CONTEXT),
        (sealed, key, b"another round"),
        (bytes([sealed[0] ^ 1]) + sealed[1:], key, CONTEXT),
        (sealed[:-1], key, CONTEXT),
    ]:
        with pytest.raises(ValueError, match="does not open"):
            moving.open(ClientId(1), bad_sealed, bad_key, bad_context)
    with pytest.raises(ValueError, match="does not open"):
        open_keys(sealed, key=key, context=CONTEXT)  # a session is not taken for keys
    with pytest.raises(ValueError, match="32 bytes"):
        seal_session(moving.clients[ClientId(2)], key=bytes(16), context=CONTEXT)


def test_another_clients_identity_does_not_take_it_up() -> None:
    moving = MovingRound(round_config(4), random_vectors(4, 5))
    moving.advance(Phase.SHARE_KEYS)
    sealed, key = moving.seal(ClientId(1))
    moving.identities[ClientId(1)] = Identity.generate()
    with pytest.raises(ValueError, match="pins another identity for client 1"):
        moving.open(ClientId(1), sealed, key)


def test_the_history_is_the_openers_own() -> None:
    """What was signed while the session was away counts: a snapshot cannot bring an old memory back."""
    moving = MovingRound(round_config(4), random_vectors(4, 5))
    moving.advance(Phase.CONSISTENCY_CHECK)  # every client has signed {1, 2, 3, 4}
    later = MovingRound(
        round_config(4, threshold=3, min_survivors=3), random_vectors(4, 5), identities=moving.identities
    )
    later.network = lambda sender, receiver, data: [] if 4 in (sender, receiver) and later.server.phase in (
        Phase.MASKED_INPUT, Phase.CONSISTENCY_CHECK) else [data]  # fmt: skip
    later.advance(Phase.MASKED_INPUT)
    later.histories = dict(moving.histories)
    later.step()
    assert later.server.phase is Phase.CONSISTENCY_CHECK
    assert set(later.errors) == {1, 2, 3}
    assert "differs in 1 clients" in str(later.errors[ClientId(1)])


def test_a_changed_round_does_not_go_on() -> None:
    """The round of a snapshot is bound: messages of another round are refused as ever."""
    one, other = (MovingRound(round_config(4), random_vectors(4, 5)) for _ in range(2))
    one.advance(Phase.SHARE_KEYS)
    other.advance(Phase.SHARE_KEYS)
    session = one.move(ClientId(1)).session
    foreign = next(data for client, data in other.received if client == 1)
    with pytest.raises((InconsistentViewError, ProtocolError)):
        session.receive(foreign)


class TestKeys:
    def keys(self) -> OneTimeKeys:
        identity = Identity.generate()
        moving = Round(round_config(3), random_vectors(3, 5), identities={
            ClientId(1): identity, ClientId(2): Identity.generate(), ClientId(3): Identity.generate()})  # fmt: skip
        return OneTimeKeys(ClientId(1), identity=identity, roster=moving.roster, suite=SUITES[2], history=History())

    def test_move_once(self) -> None:
        keys, key = self.keys(), os.urandom(32)
        secrets = [half.secret for half in keys._pair or ()]
        sealed = seal_keys(keys, key=key, context=CONTEXT)
        with pytest.raises(LocalProtocolError, match="served a round before"):
            keys.take()
        with pytest.raises(LocalProtocolError, match="served a round before"):
            seal_keys(keys, key=key, context=CONTEXT)
        opened = open_keys(sealed, key=key, context=CONTEXT)
        assert opened.bundle == keys.bundle
        assert vars(opened).keys() == vars(keys).keys()
        assert [half.secret for half in opened.take()] == secrets
        assert all(secret not in sealed for secret in secrets)

    def test_go_with_the_session_that_will_send_their_bundle(self) -> None:
        moving = MovingRound(round_config(3), random_vectors(3, 5))
        history = History().after(KeysAdvertised(round_id=bytes(32), serial=1))
        next_keys = OneTimeKeys(
            ClientId(1), identity=moving.identities[ClientId(1)], roster=moving.roster, suite=SUITES[2], history=history
        )
        moving.clients[ClientId(1)]._next_keys = next_keys
        moving.run()
        assert moving.server.next_bundles == {ClientId(1): next_keys.bundle}


def test_no_snapshot_decodes_with_fields_of_its_own() -> None:
    from protocols import snapshot

    for kind in (snapshot._Keys, snapshot._Session):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode([1]), type=kind)

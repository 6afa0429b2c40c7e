"""The hybrid suite: what a server that holds all ciphertexts can do with them, and what is left if one part breaks."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.exceptions import UnsupportedAlgorithm

from protocols import (
    ClientId,
    Identity,
    InconsistentViewError,
    MalformedMessageError,
    PairwiseServer,
    PeerRejected,
    Phase,
    RemoteProtocolError,
    Roster,
    TooFewClientsError,
)
from protocols.pairwise.sealed import Sealed, open_shares
from protocols.primitives import keys
from protocols.primitives.keys import CLASSICAL, HYBRID, SUITES, AgreementKey
from protocols.wire import (
    COMMITMENT_BYTES,
    SEALED_SHARES_BYTES,
    AdvertiseKeys,
    ConsistencyCheck,
    KeyBundle,
    KeyBundles,
    MaskedInput,
    SealedShares,
    ShareKeys,
    Unmask,
    decode,
    encode,
)
from tests.rounds import Round, random_vectors, round_config

from .hostile import (
    altered,
    assert_refused,
    ids,
    kept_by,
    malicious_client,
    rewriting,
    signed_bundle,
    silencing,
    small_round,
    together,
)

ALL = ids(1, 2, 3, 4)
LIAR = ClientId(4)
CIPHERTEXT = HYBRID.ciphertext_bytes
HALF = CIPHERTEXT + SEALED_SHARES_BYTES
PLACES = {
    "channel ciphertext": 0,
    "shares": CIPHERTEXT,
    "commitment": HALF,
    "half's ciphertext": HALF + COMMITMENT_BYTES,
    "half": HALF + COMMITMENT_BYTES + CIPHERTEXT,
}


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes((data[place] ^ 1,)) + data[place + 1 :]


def altered_bundle(bundle: KeyBundle, mask_key: bytes) -> KeyBundle:
    return msgspec.structs.replace(bundle, mask_key=mask_key)


class TestRelay:
    @pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
    def test_no_part_of_a_sealed_message_can_be_changed(self, place: int) -> None:
        """The victim notices before anything is masked, and names both ends."""
        game = small_round()
        game.network = rewriting(
            SealedShares,
            lambda _, m: altered(m, sealed=(flipped(m.sealed[0], place), *m.sealed[1:])),
            to=ids(3),
        )
        game.play()
        assert_refused(game, RemoteProtocolError, by=ids(3), match="from client 1 to client 3")
        assert game.result is not None
        assert game.result.survivors == set(ids(1, 2, 4))
        assert (game.result.vector == game.expected(game.result.survivors)).all()

    def test_a_half_of_another_pair_does_not_fit(self) -> None:
        """Halves of client 1 to 2 and to 3 are swapped: their seals are good, but elsewhere."""
        game = small_round()
        halves: dict[ClientId, bytes] = {}

        def change(me: ClientId, message: SealedShares) -> SealedShares:
            first = message.sealed[0]
            halves[me] = first[HALF:]
            other = halves.get(ClientId(2), first[HALF:])
            return altered(message, sealed=(first[:HALF] + other, *message.sealed[1:]))

        game.network = rewriting(SealedShares, change, to=ids(2, 3))
        game.play()
        assert_refused(game, RemoteProtocolError, by=ids(3), match="from client 1 to client 3")

    def test_shares_and_half_of_an_older_round_do_not_open(self) -> None:
        old = Round(round_config(4, threshold=3), random_vectors(4, 5))
        seen: dict[ClientId, SealedShares] = {}

        def keep(me: ClientId, message: SealedShares) -> SealedShares:
            seen[me] = message
            return message

        old.network = rewriting(SealedShares, keep)
        old.play()
        game = Round(round_config(4, threshold=3), random_vectors(4, 5), identities=old.identities)
        game.network = rewriting(SealedShares, lambda me, m: altered(m, sealed=seen[me].sealed))
        game.play()
        assert_refused(game, RemoteProtocolError, by=ALL)
        assert game.result is None


class TestLiar:
    def bad_half(self, game: Round) -> None:
        """Client 4 seals to client 1 a half that does not open, inside shares that do."""
        session = game.clients[LIAR]

        def change(message: ShareKeys) -> ShareKeys:
            rules, secrets = game.server._rules, session._secrets  # a client has forgotten the keys by now
            assert secrets is not None
            half = flipped(Sealed.of(message.sealed[0], HYBRID).half, COMMITMENT_BYTES + CIPHERTEXT)
            shares = game.clients[LIAR]._secrets
            assert shares is not None
            secret, ciphertext = keys.encapsulate(rules.bundles[ClientId(1)].channel_key, HYBRID)
            channel = rules.channel_key(secrets.channels[ClientId(1)] + secret, LIAR, ClientId(1))
            opened = keys.seal(channel, bytes(72), associated=rules.context + ciphertext + half)
            return altered(message, sealed=(ciphertext + opened + half, *message.sealed[1:]))

        game.network = malicious_client(game, LIAR, ShareKeys, change)

    def test_a_half_that_does_not_open_makes_its_reader_refuse_and_names_the_liar(self) -> None:
        """The reader drops out, and then its masks with the liar cannot be removed: no sum, and the liar is named."""
        game = small_round()
        self.bad_half(game)
        game.play()
        assert_refused(game, RemoteProtocolError, by=ids(1), match="from client 4 to client 1")
        assert game.errors[ClientId(1)].client_id == LIAR
        assert game.result is None
        assert isinstance(game.server_error, RemoteProtocolError)
        assert game.server_error.client_id == LIAR
        assert "half of a pair secret from client 4 to client 1" in str(game.server_error)
        assert game.server.phase is Phase.ABORTED

    @pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
    def test_a_false_half_does_not_spoil_the_sum(self, committed: bool) -> None:
        """The liar seals another half than its mask key's, and drops out: the server's derivation would be off."""
        game = Round(round_config(5, threshold=3), random_vectors(5, 5))
        session, false = game.clients[LIAR], bytes(range(32))

        def change(message: ShareKeys) -> ShareKeys:
            rules, secrets, one = game.server._rules, session._secrets, ClientId(1)
            assert secrets is not None
            secret, ciphertext = keys.encapsulate(rules.bundles[one].mask_key, HYBRID)
            real = rules.pair_half(secrets.mask_key.secret, LIAR, one)
            half = rules.half_commitment(false if committed else real, LIAR, one) + ciphertext
            half += keys.seal(rules.half_key(secret, LIAR, one), false, associated=rules.context)
            reader = game.clients[one]._secrets
            assert reader is not None
            shares = open_shares(
                rules,
                Sealed.of(message.sealed[0], HYBRID),
                sender=LIAR,
                receiver=one,
                agreed=secrets.channels[one],
                channel_key=reader.channel_key,
            )
            secret, ciphertext = keys.encapsulate(rules.bundles[one].channel_key, HYBRID)
            channel = rules.channel_key(secrets.channels[one] + secret, LIAR, one)
            sealed = keys.seal(channel, shares, associated=rules.context + ciphertext + half)
            return altered(message, sealed=(ciphertext + sealed + half, *message.sealed[1:]))

        game.network = together(
            malicious_client(game, LIAR, ShareKeys, change), silencing(LIAR, MaskedInput, ConsistencyCheck, Unmask)
        )
        game.play()
        if committed:
            assert game.result is None
            assert isinstance(game.server_error, RemoteProtocolError)
            assert game.server_error.client_id == LIAR
            assert "is not that of its mask key" in str(game.server_error)
        else:
            assert_refused(game, RemoteProtocolError, by=ids(1), match="from client 4 to client 1")
            assert game.result is not None
            assert game.result.survivors == set(ids(2, 3, 5))
            assert (game.result.vector == game.expected(game.result.survivors)).all()

    def test_it_does_no_harm_once_the_liar_is_gone_too(self) -> None:
        game = Round(round_config(5, threshold=3), random_vectors(5, 5))
        self.bad_half(game)
        game.network = together(game.network, silencing(LIAR, MaskedInput, ConsistencyCheck, Unmask))
        game.play()
        assert game.result is not None
        assert game.result.survivors == set(ids(2, 3, 5))
        assert (game.result.vector == game.expected(game.result.survivors)).all()


class TestErasure:
    @pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
    def test_an_error_remembers_no_key(self, place: int) -> None:
        """A server can make a client refuse at will: a report of that must not open its neighbours' shares."""
        game = small_round()
        game.network = rewriting(
            SealedShares, lambda _, m: altered(m, sealed=(flipped(m.sealed[0], place), *m.sealed[1:])), to=ids(3)
        )
        secrets: list[bytes] = []
        game.advance(Phase.SHARE_KEYS)
        live = game.clients[ClientId(3)]._secrets
        assert live is not None
        secrets += [live.channel_key.secret, live.mask_key.secret, live.self_seed]
        game.play()
        kept = kept_by(game.errors[ClientId(3)])
        assert not [one for one in kept if isinstance(one, bytes) and one in secrets]
        assert not [one for one in kept if isinstance(one, AgreementKey) and one.secret]


class TestOneOfTwo:
    """A mask is as secret as the better of the two: whoever breaks one of them still misses something."""

    def test_a_pair_seed_needs_x25519_and_both_halves(self) -> None:
        game = small_round()
        one, two = ids(1, 2)
        game.advance(Phase.SHARE_KEYS)
        rules, first, second = game.server._rules, game.clients[one]._secrets, game.clients[two]._secrets
        assert first is not None
        assert second is not None
        agreed = first.pairs[two]
        halves = {
            one: rules.pair_half(first.mask_key.secret, one, two),
            two: rules.pair_half(second.mask_key.secret, two, one),
        }
        real = rules.pair_mask_seed(agreed, halves)
        assert agreed == second.pairs[one]
        zeros = bytes(32)
        wrong = [
            rules.pair_mask_seed(zeros, halves),
            rules.pair_mask_seed(agreed, {**halves, one: zeros}),
            rules.pair_mask_seed(agreed, {**halves, two: zeros}),
            rules.pair_mask_seed(agreed, {one: halves[two], two: halves[one]}),
        ]
        assert len({real, *wrong}) == 5

    def test_a_channel_needs_both(self) -> None:
        """With the X25519 secret alone, or the KEM secret alone, shares do not open."""
        game = small_round()
        one, two = ids(1, 2)
        frames: dict[ClientId, SealedShares] = {}

        def keep(me: ClientId, message: SealedShares) -> SealedShares:
            frames[me] = message
            secrets = game.clients[me]._secrets
            assert secrets is not None
            known[me] = (secrets.channels[one if me == two else two], AgreementKey(secrets.channel_key.secret, HYBRID))
            return message

        known: dict[ClientId, tuple[bytes, AgreementKey]] = {}
        game.network = rewriting(SealedShares, keep, to=ids(2))
        game.play()
        agreed, channel_key = known[two]
        rules, sealed = game.server._rules, Sealed.of(frames[two].sealed[0], HYBRID)
        kem = channel_key.decapsulate(sealed.ciphertext)
        associated = rules.context + sealed.ciphertext + sealed.half
        for secret, opens in ((agreed + kem, True), (agreed + bytes(32), False), (bytes(32) + kem, False)):
            key = rules.channel_key(secret, one, two)
            if opens:
                assert len(keys.unseal(key, sealed.shares, associated=associated)) == 72
            else:
                with pytest.raises(ValueError, match="does not open"):
                    keys.unseal(key, sealed.shares, associated=associated)


class TestSuites:
    def test_no_negotiation(self) -> None:
        """A client of one suite and a server of the other have different contexts and different frames."""
        for ours, theirs in ((1, 2), (2, 1)):
            config = round_config(3, suite=ours)
            other = round_config(3, suite=theirs, round_id=config.round_id)
            assert config.digest() != other.digest()
            game = Round(config, random_vectors(3, 5))
            foreign = Round(other, random_vectors(3, 5), identities=game.identities)
            for client, session in foreign.clients.items():
                frames = [e.data for e in [*session.start(), *session.persisted()] if hasattr(e, "data")]
                (rejected,) = game.server.receive(client, frames[0])
                assert isinstance(rejected, PeerRejected)
                assert "at most" in rejected.reason if ours == 1 else "header" in rejected.reason

    def test_a_round_of_each_suite_is_exact(self) -> None:
        for suite in SUITES:
            game = Round(round_config(5, threshold=3, suite=suite), random_vectors(5, 5))
            game.network = silencing(ClientId(5), MaskedInput, ConsistencyCheck, Unmask)
            result = game.run()
            assert result.survivors == set(ids(1, 2, 3, 4))
            assert (result.vector == game.expected(result.survivors)).all()

    @pytest.mark.parametrize("part", [slice(0, 32), slice(32, None)], ids=["X25519", "ML-KEM"])
    def test_no_part_of_a_key_serves_two_clients(self, part: slice) -> None:
        """A malicious client that repeats one part of another's key, properly signed, is turned away."""
        game = small_round()
        first = game.clients[ClientId(1)]

        def change(message: AdvertiseKeys) -> AdvertiseKeys:
            theirs = first._own_bundle
            assert theirs is not None
            mixed = bytearray(message.bundle.mask_key)
            mixed[part] = theirs.mask_key[part]
            return altered(message, bundle=signed_bundle(game, altered_bundle(message.bundle, bytes(mixed))))

        game.network = malicious_client(game, LIAR, AdvertiseKeys, change)
        game.play()
        assert [event.client for event in game.rejected] == [LIAR]

    def test_the_kem_part_of_a_key_cannot_be_swapped(self) -> None:
        """The signature of a bundle covers both parts, and so does the root."""
        stranger = AgreementKey(bytes(range(32)), HYBRID).public[32:]
        game = small_round()

        def change(_: ClientId, message: KeyBundles) -> KeyBundles:
            first = message.bundles[0]
            swapped = altered(first, mask_key=first.mask_key[:32] + stranger)  # type: ignore[type-var]
            return altered(message, bundles=(swapped, *message.bundles[1:]))

        game.network = rewriting(KeyBundles, change)
        game.play()
        assert game.result is None
        assert isinstance(game.errors[ClientId(1)], InconsistentViewError)
        assert isinstance(game.server_error, TooFewClientsError)
        assert not game.shares_sent()

    def test_there_are_two(self) -> None:
        with pytest.raises(ValueError, match=r"suite must be one of \[1, 2\], got 3"):
            round_config(3, suite=3)

    def test_a_size_of_the_other_suite_does_not_decode(self) -> None:
        """Public keys and sealed messages alike, in the right frame."""
        context, number = bytes(32), HYBRID.number
        bundle = KeyBundle(
            client=1, serial=1, fresh=context, channel_key=bytes(32), mask_key=bytes(32), signature=bytes(64)
        )
        for message in (
            AdvertiseKeys(context=context, sender=1, bundle=bundle),
            KeyBundles(context=context, sender=0, bundles=(bundle,)),
            Unmask(context=context, sender=1, shares=b"", next_bundle=(bundle,)),
            ShareKeys(context=context, sender=1, seed_commitment=context, sealed=(bytes(SEALED_SHARES_BYTES),)),
            SealedShares(context=context, sender=0, cohort=(1,), sealed=(bytes(SEALED_SHARES_BYTES),)),
        ):
            with pytest.raises(MalformedMessageError, match=f"of suite {number} has"):
                decode(encode(message, suite=HYBRID), type(message), suite=HYBRID, limit=10**6)
            assert decode(encode(message, suite=CLASSICAL), type(message), suite=CLASSICAL, limit=10**6) == message

    def test_a_backend_without_ml_kem_is_refused_before_the_round(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """At both ends, by name, and never by another suite."""

        def lacking(_: bytes) -> None:
            raise UnsupportedAlgorithm("no ML-KEM")

        monkeypatch.setattr(keys.MLKEM768PrivateKey, "from_seed_bytes", lacking, raising=True)
        keys.check_available.cache_clear()
        try:
            identities = {client: Identity.generate() for client in ids(1, 2, 3)}
            roster = Roster({client: identity.public for client, identity in identities.items()})
            with pytest.raises(ValueError, match="suite 2 needs ML-KEM-768"):
                PairwiseServer(round_config(3), roster=roster)
            PairwiseServer(round_config(3, suite=1), roster=roster)
        finally:
            keys.check_available.cache_clear()

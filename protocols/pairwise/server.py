"""The server's part: it routes, adds, and unmasks the sum over the survivors.

It keeps one accumulator and O(cohort * degree) bytes of sealed shares, never the vectors. Its checks protect the
result, not the clients: a bad message is rejected without effect, and the sum is either exact or not released.
"""

from __future__ import annotations

import builtins
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256

import numpy as np

from ..errors import (
    ClientId,
    InconsistentViewError,
    LocalProtocolError,
    MalformedMessageError,
    RemoteProtocolError,
)
from ..lifecycle import Lifecycle
from ..partial import Map, MaskJob
from ..primitives import keys, packing, prg, shamir
from ..roster import Roster, bundle_digest
from ..session import SERVER_TRANSITIONS, AggregateReady, Event, PeerRejected, Phase, RoundConfig, SendMessage
from ..wire import (
    COMMITMENT_BYTES,
    AdvertiseKeys,
    ConsistencyCheck,
    KeyBundle,
    KeyBundles,
    MaskedInput,
    Message,
    MessageT,
    SealedShares,
    ShareKeys,
    SurvivorList,
    SurvivorSignatures,
    Unmask,
    decode,
    decode_signed,
    encode,
)
from . import removable
from .rules import Rules, key_parts
from .sealed import Sealed, open_half

SEGMENT_BYTES = (
    2 * 1024 * 1024
)  # one unit of mask expansion: long enough that setting up a cipher for each seed is noise


class PairwiseServer(Lifecycle):
    """The server's part in one round; keeps the `ServerSession` contract.

    Args:
        config: the round.
        roster: the pinned identities of all clients.
        bundles: key bundles that clients sent in advance (`next_bundles` of earlier rounds); one that does not fit this
            round is left out, and a client may still advertise other keys.
        map: where mask expansion runs, in this process or in others; segments of the vector are independent.

    Attributes:
        next_bundles: verified bundles for a later round, from the clients that attached one to their last message.
    """

    def __init__(
        self,
        config: RoundConfig,
        *,
        roster: Roster,
        bundles: Mapping[ClientId, KeyBundle] | None = None,
        map: Map = builtins.map,  # noqa: A002 - it is the builtin's place
    ) -> None:
        self._rules = Rules(config, roster)
        self._map = map
        self._phase = Phase.ADVERTISE_KEYS
        self._expected: frozenset[ClientId] = frozenset(roster)
        self._answered: set[ClientId] = set()
        self._public_keys: set[bytes] = set()  # of all bundles offered, replaced ones too
        self._offered: dict[ClientId, KeyBundle] = {}
        self.next_bundles: dict[ClientId, KeyBundle] = {}
        self._commitments: dict[ClientId, bytes] = {}
        self._sealed: defaultdict[ClientId, dict[ClientId, bytes]] = defaultdict(
            dict
        )  # receiver -> sender -> ciphertext
        # Halves of pair secrets that only dropouts need. A copy beside the frames would be half as much memory again.
        self._relayed: dict[ClientId, bytes] = {}  # cohort member -> the frame with all halves sealed to it
        self._half_commitments: dict[ClientId, bytes] = {}  # sender -> commitments to its own, in order of receivers
        self._cohort: tuple[ClientId, ...] = ()
        self._in_cohort: frozenset[ClientId] = frozenset()
        self._cohort_digest = b""
        self._survivors: tuple[ClientId, ...] = ()
        self._alive: frozenset[ClientId] = frozenset()
        self._view = b""
        self._signatures: dict[ClientId, bytes] = {}
        self._chain_ends: dict[ClientId, bytes] = {}
        self._shares: dict[ClientId, shamir.Shares] = {}
        self._link_shares: dict[ClientId, shamir.Shares] = {}  # of one link of each survivor's chain
        self._words: prg.Words = np.zeros(0, dtype=np.uint32)
        for client, bundle in (bundles or {}).items():
            with suppress(RemoteProtocolError):
                self._offer(client, bundle)

    @property
    def waiting_for(self) -> frozenset[ClientId]:
        """Clients whose message of this phase is still missing."""
        there = self._offered.keys() if self._phase is Phase.ADVERTISE_KEYS else self._answered
        return self._expected - there

    def receive(self, sender: ClientId, data: bytes) -> list[Event]:
        """Takes one message; see `ServerSession.receive`."""
        handlers: dict[Phase, Callable[[ClientId, bytes], None]] = {
            Phase.ADVERTISE_KEYS: self._take_keys,
            Phase.SHARE_KEYS: self._take_sealed,
            Phase.MASKED_INPUT: self._take_masked,
            Phase.CONSISTENCY_CHECK: self._take_signature,
            Phase.UNMASK: self._take_shares,
        }
        handler = handlers.get(self._phase)
        if handler is None:
            raise LocalProtocolError("the round is over", phase=self._phase.value)
        try:
            if sender not in self._expected or sender in self._answered:
                raise RemoteProtocolError(f"nothing is expected from client {sender} in phase {self._phase.value}")
            handler(sender, data)
        except RemoteProtocolError as error:
            return [PeerRejected(client=sender, reason=str(error))]
        self._answered.add(sender)
        return []

    def close_phase(self) -> list[Event]:
        """Goes on with those who answered; see `ServerSession.close_phase`."""
        steps: dict[Phase, Callable[[], list[Event]]] = {
            Phase.ADVERTISE_KEYS: self._close_keys,
            Phase.SHARE_KEYS: self._close_sealed,
            Phase.MASKED_INPUT: self._close_masked,
            Phase.CONSISTENCY_CHECK: self._close_signatures,
            Phase.UNMASK: self._close_shares,
        }
        with self._guard():
            if self._phase not in steps:
                raise LocalProtocolError("the round is over", phase=self._phase.value)
            events = steps[self._phase]()
            self._phase = SERVER_TRANSITIONS[self._phase, "close_phase"]
            self._answered = set()
            if self._phase is Phase.FINISHED:
                self._erase()
            return events

    # One pair of steps for each phase: take a message, close the phase.

    def _take_keys(self, sender: ClientId, data: bytes) -> None:
        message = decode(data, AdvertiseKeys, suite=self._rules.suite, limit=self._rules.limit)
        self._check_origin(message, sender)
        self._offer(sender, message.bundle)

    def _offer(self, client: ClientId, bundle: KeyBundle) -> None:
        """Takes a bundle into the round; keys that repeat would void the round for all others."""
        replaced = self._offered.get(client)
        if replaced is None and len(self._offered) == self._rules.config.cohort:
            raise RemoteProtocolError(f"the cohort of {self._rules.config.cohort} is full")
        self._check_bundle(client, bundle)
        public_keys = set(key_parts(bundle))
        if not public_keys.isdisjoint(self._public_keys):
            raise MalformedMessageError(f"a public key of client {client} serves twice")
        self._public_keys |= public_keys
        self._offered[client] = bundle

    def _check_bundle(self, client: ClientId, bundle: KeyBundle) -> None:
        """It is the client's own, and holds keys that peers can agree with: others would void the round for them."""
        if bundle.client != client:
            raise MalformedMessageError(f"client {client} advertises keys of client {bundle.client}")
        digest = bundle_digest(bundle, self._rules.roster, self._rules.suite)
        self._rules.roster.check_signature(client, "KeyBundle", digest, bundle.signature)
        if len(set(key_parts(bundle))) != len(key_parts(bundle)):
            raise MalformedMessageError(f"a public key of client {client} serves twice")
        try:
            for public in (bundle.channel_key, bundle.mask_key):
                keys.check_public_key(public, self._rules.suite)
        except ValueError as error:
            raise MalformedMessageError(str(error)) from None

    def _close_keys(self) -> list[Event]:
        self._rules.check_floor("advertised keys", frozenset(self._offered), self._phase)
        bundles = tuple(self._offered[client] for client in sorted(self._offered))
        frame = self._encode(KeyBundles(context=self._rules.context, sender=0, bundles=bundles))
        self._rules.bind(bundles)
        self._expected = frozenset(self._offered)
        return [SendMessage(to=client, data=frame) for client in self._rules.bundles]

    def _take_sealed(self, sender: ClientId, data: bytes) -> None:
        message, suite = self._open(sender, data, ShareKeys), self._rules.suite
        receivers = self._neighbours(sender, self._rules.bundles)
        if len(message.sealed) != len(receivers):
            raise MalformedMessageError(f"{len(message.sealed)} sealed shares for {len(receivers)} neighbours")
        self._commitments[sender] = message.seed_commitment[:COMMITMENT_BYTES]
        self._chain_ends[sender] = message.seed_commitment[COMMITMENT_BYTES:]
        for receiver, sealed in zip(receivers, message.sealed, strict=True):
            self._sealed[receiver][sender] = sealed
        if suite.ciphertext_bytes:
            halves = (Sealed.of(sealed, suite, self._rules.config.removable).half for sealed in message.sealed)
            self._half_commitments[sender] = b"".join(half[:COMMITMENT_BYTES] for half in halves)

    def _close_sealed(self) -> list[Event]:
        self._cohort = tuple(sorted(self._answered))
        self._rules.check_floor("shared keys", self._cohort, self._phase)
        self._expected = self._in_cohort = frozenset(self._cohort)
        self._cohort_digest = self._rules.cohort_digest(self._cohort)
        events: list[Event] = []
        for client in self._cohort:
            peers = self._neighbours(client, self._in_cohort)
            from_peers = self._sealed.pop(client, {})  # gone as soon as they are in the frame
            sealed = tuple(from_peers[peer] for peer in peers)
            message = SealedShares(context=self._rules.context, sender=0, cohort=self._cohort, sealed=sealed)
            frame = self._encode(message)
            if self._rules.suite.ciphertext_bytes:
                self._relayed[client] = frame
            events.append(SendMessage(to=client, data=frame))
        self._sealed.clear()
        bits = self._rules.config.modulus_bits
        self._words = np.zeros(packing.word_count(self._rules.config.length, bits), dtype=packing.word_dtype(bits))
        return events

    def _take_masked(self, sender: ClientId, data: bytes) -> None:
        message, tail = self._verified(sender, data, MaskedInput, self._words.nbytes)
        if message.cohort != self._cohort_digest:
            raise InconsistentViewError(f"client {sender} masked with another cohort")
        np.add(self._words, np.frombuffer(tail, dtype=self._words.dtype), out=self._words)

    def _close_masked(self) -> list[Event]:
        self._survivors = tuple(sorted(self._answered))
        self._rules.check_floor("survived", self._survivors, self._phase)
        frame = self._encode(SurvivorList(context=self._rules.context, sender=0, survivors=self._survivors))
        self._expected = self._alive = frozenset(self._survivors)
        for client in self._survivors:
            self._relayed.pop(client, None)
            self._half_commitments.pop(client, None)
        self._view = self._rules.view(self._cohort, self._survivors)
        return [SendMessage(to=client, data=frame) for client in self._survivors]

    def _take_signature(self, sender: ClientId, data: bytes) -> None:
        message = self._open(sender, data, ConsistencyCheck)
        if message.view != self._view:
            raise InconsistentViewError(f"client {sender} saw another cohort or other survivors")
        self._signatures[sender] = bytes(data[-keys.SIGNATURE_BYTES :])

    def _close_signatures(self) -> list[Event]:
        events: list[Event] = []
        for client in sorted(self._answered):
            holders = self._rules.graph.holders(client)
            signers = tuple(holder for holder in holders if holder in self._signatures)
            if len(signers) >= self._rules.config.threshold:
                signatures = tuple(self._signatures[signer] for signer in signers)
                frame = self._encode(
                    SurvivorSignatures(context=self._rules.context, sender=0, signers=signers, signatures=signatures)
                )
                events.append(SendMessage(to=client, data=frame))
        self._expected = frozenset(
            event.to for event in events if isinstance(event, SendMessage) and event.to is not None
        )
        for client in self._cohort:
            self._rules.check_holders(self._rules.graph.holders(client), self._expected, self._phase)
        return events

    def _take_shares(self, sender: ClientId, data: bytes) -> None:
        message = self._open(sender, data, Unmask)
        try:
            held, links = len(self._held_by(sender)), len(self._chains_held_by(sender))
            shares = shamir.decode_shares(message.shares, held + links)
        except ValueError as error:
            raise MalformedMessageError(str(error)) from None
        for bundle in message.next_bundle:
            self._check_bundle(sender, bundle)
            self.next_bundles[sender] = bundle
        self._shares[sender], self._link_shares[sender] = shares[:held], shares[held:]

    def _close_shares(self) -> list[Event]:
        add: list[bytes] = []
        subtract: list[bytes] = []
        for client, secret in self._reconstruct(self._cohort, self._shares, self._held_by):
            if client in self._alive:
                if self._rules.seed_commitment(client, secret) != self._commitments[client]:
                    raise RemoteProtocolError(
                        f"the shares of client {client}'s self seed do not match its commitment", client_id=client
                    )
                subtract.append(self._rules.self_mask_seed(client, secret))
                continue
            mask_key = keys.AgreementKey(secret, self._rules.suite)
            if mask_key.public != self._rules.bundles[client].mask_key:
                raise RemoteProtocolError(
                    f"the shares of client {client}'s mask key do not match its public key", client_id=client
                )
            halves, commitments = self._halves_sealed_to(client), self._commitments_of(client)
            for peer in self._neighbours(client, self._alive):
                seed = self._pair_mask_seed(
                    mask_key, client, peer, half=halves.get(peer, b""), commitment=commitments.get(peer, b"")
                )
                (subtract if client > peer else add).append(seed)
        self._remove_masks(add, subtract)
        config = self._rules.config
        vector = packing.unpack(self._words, config.length, config.modulus_bits)
        summed = sha256(vector.astype("<u4", copy=False).data).digest()
        transcript = sha256(b"secagg/v1/pairwise/transcript" + self._view + summed).digest()
        return [
            AggregateReady(vector=vector, survivors=self._alive, transcript=transcript, removed=self._removed_seeds())
        ]

    # What the steps share.

    def _removed_seeds(self) -> dict[ClientId, tuple[bytes, ...]]:
        """The seeds of all components that must go, of every survivor, each chain checked against its end."""
        first, seeds = self._rules.config.first_removed(len(self._survivors)), {}
        if first > self._rules.config.removable:
            return {}
        for client, link in self._reconstruct(self._survivors, self._link_shares, self._chains_held_by):
            chain = removable.links(self._rules, client, link, start=first)
            if chain[-1] != self._chain_ends[client]:
                raise RemoteProtocolError(
                    f"the shares of client {client}'s chain do not match its end", client_id=client
                )
            seeds[client] = removable.seeds(self._rules, client, chain)
        return seeds

    def _reconstruct(
        self,
        owners: Iterable[ClientId],
        answers: Mapping[ClientId, shamir.Shares],
        order: Callable[[ClientId], tuple[ClientId, ...]],
    ) -> Iterator[tuple[ClientId, bytes]]:
        """One secret of each owner, from the first t answers of its holders.

        Clients whose answering holders sit in the same slots share one interpolation; on the complete graph that is all
        of them.

        Args:
            owners: whose secrets.
            answers: the shares of each holder.
            order: the owners of a holder's shares, in their order.
        """
        threshold = self._rules.config.threshold
        groups: defaultdict[tuple[int, ...], list[tuple[ClientId, list[shamir.Shares]]]] = defaultdict(list)
        rows = {holder: {owner: row for row, owner in enumerate(order(holder))} for holder in answers}
        for client in owners:
            holders = self._rules.graph.holders(client)
            used = [(slot, holder) for slot, holder in enumerate(holders) if holder in answers][:threshold]
            self._rules.check_holders(holders, answers, self._phase)
            shares = [answers[holder][rows[holder][client]] for _, holder in used]
            groups[tuple(slot for slot, _ in used)].append((client, shares))
        for slots, members in groups.items():
            secrets = shamir.reconstruct(slots, np.stack([shares for _, shares in members], axis=1))
            for (client, _), secret in zip(members, secrets, strict=True):
                if secret is None:
                    raise RemoteProtocolError(f"client {client} or a holder of its shares lies", client_id=client)
                yield client, secret

    def _halves_sealed_to(self, client: ClientId) -> dict[ClientId, bytes]:
        """What a dropout would have opened; nothing in the classical suite."""
        if client not in self._relayed:
            return {}
        suite, peers = self._rules.suite, self._neighbours(client, self._in_cohort)
        frame, links = self._relayed[client], self._rules.config.removable
        relayed = decode(frame, SealedShares, suite=suite, removable=links, limit=len(frame))
        return {peer: Sealed.of(sealed, suite, links).half for peer, sealed in zip(peers, relayed.sealed, strict=True)}

    def _commitments_of(self, client: ClientId) -> dict[ClientId, bytes]:
        """A dropout's commitments to its halves; nothing in the classical suite."""
        joined, peers = self._half_commitments.get(client, b""), self._neighbours(client, self._rules.bundles)
        places = range(0, len(joined), COMMITMENT_BYTES)
        return {peer: joined[at : at + COMMITMENT_BYTES] for peer, at in zip(peers, places, strict=False)}

    def _pair_mask_seed(
        self, mask_key: keys.AgreementKey, client: ClientId, peer: ClientId, *, half: bytes, commitment: bytes
    ) -> bytes:
        """The key of the mask that a dropout would have shared with a peer.

        Args:
            mask_key: the dropout's, reconstructed.
            client: the dropout.
            peer: its neighbour, which survived.
            half: what the peer sealed to the dropout.
            commitment: the dropout's, to its own half.
        """
        rules = self._rules
        try:
            opened = open_half(rules, half, sender=peer, receiver=client, mask_key=mask_key)
        except ValueError as error:
            raise RemoteProtocolError(
                f"the half of a pair secret from client {peer} to client {client}: {error}", client_id=peer
            ) from None
        halves = {client: rules.pair_half(mask_key.secret, client, peer), peer: opened}
        if rules.suite.ciphertext_bytes and rules.half_commitment(halves[client], client, peer) != commitment:
            raise RemoteProtocolError(
                f"the half of a pair secret from client {client} to client {peer} is not that of its mask key",
                client_id=client,
            )
        return rules.pair_mask_seed(mask_key.agree(rules.bundles[peer].mask_key), halves)

    def _remove_masks(self, add: list[bytes], subtract: list[bytes]) -> None:
        context, dtype = self._rules.context, self._words.dtype
        job = MaskJob(context=context, add=tuple(add), subtract=tuple(subtract), dtype=dtype)
        job.add_to(self._words, step=SEGMENT_BYTES // self._words.itemsize, map=self._map)

    def _neighbours(self, client: ClientId, clients: Container[ClientId]) -> tuple[ClientId, ...]:
        return tuple(peer for peer in self._rules.graph.holders(client) if peer != client and peer in clients)

    def _held_by(self, holder: ClientId) -> tuple[ClientId, ...]:
        """Whose shares `holder` answers with, in order: neighbourhood is symmetric."""
        return tuple(client for client in self._rules.graph.holders(holder) if client in self._in_cohort)

    def _chains_held_by(self, holder: ClientId) -> tuple[ClientId, ...]:
        """Whose links `holder` answers with after those, in order: survivors', if any component must go."""
        if self._rules.config.first_removed(len(self._survivors)) > self._rules.config.removable:
            return ()
        return tuple(client for client in self._held_by(holder) if client in self._alive)

    def _check_origin(self, message: Message, sender: ClientId) -> None:
        if message.context != self._rules.context:
            raise InconsistentViewError("the message belongs to another round or another view of its keys")
        if message.sender != sender:
            raise MalformedMessageError(f"a message of client {message.sender} came from client {sender}")

    def _encode(self, message: Message) -> bytes:
        return encode(message, suite=self._rules.suite)

    def _open(self, sender: ClientId, data: bytes, kind: type[MessageT]) -> MessageT:
        """Checks a signed frame without a tail and returns its message."""
        return self._verified(sender, data, kind, 0)[0]

    def _verified(
        self, sender: ClientId, data: bytes, kind: type[MessageT], tail_bytes: int
    ) -> tuple[MessageT, memoryview]:
        rules = self._rules
        frame = decode_signed(
            data,
            kind,
            suite=rules.suite,
            removable=rules.config.removable,
            limit=rules.limit,
            tail_bytes=tail_bytes,
        )
        self._check_origin(frame.message, sender)
        self._rules.roster.check_signature(sender, kind.__name__, frame.digest, frame.signature)
        return frame.message, frame.tail

    def _erase(self) -> None:
        self._sealed.clear()
        self._relayed.clear()
        self._half_commitments.clear()
        self._shares.clear()
        self._link_shares.clear()
        self._words = np.zeros(0, dtype=np.uint32)
        self._expected = frozenset()

"""The client's part: it checks everything before it answers, answers once, and erases."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import (
    ClientId,
    InconsistentViewError,
    InvalidSignatureError,
    LocalProtocolError,
    MalformedMessageError,
    RemoteProtocolError,
)
from ..lifecycle import Lifecycle
from ..policy import BundlesSeen, ClientPolicy, History, KeysAdvertised, Record, SurvivorsSigned
from ..primitives import keys, packing, prg, shamir
from ..roster import Identity, Roster, bundle_digest, signed_text
from ..session import (
    CLIENT_TRANSITIONS,
    ContributionNeeded,
    Event,
    PersistBeforeSend,
    Phase,
    RoundConfig,
    SendMessage,
    SurvivorsAgreed,
)
from ..wire import (
    SERVER,
    AdvertiseKeys,
    ConsistencyCheck,
    KeyBundle,
    KeyBundles,
    MaskedInput,
    Message,
    SealedShares,
    ShareKeys,
    SurvivorList,
    SurvivorSignatures,
    Unmask,
    check_increasing,
    decode,
    encode,
)
from . import removable
from .one_time_keys import OneTimeKeys
from .rules import Rules
from .sealed import Sealed, open_half, open_shares, seal

RandomBytes = Callable[[int], bytes]
ClientIds = NDArray[np.int32]


class _Secrets(keys.Unprintable):
    """All that must be erased when a client's round ends, in one place."""

    def __init__(self, one_time_keys: OneTimeKeys, rand: RandomBytes) -> None:
        self.channel_key, self.mask_key = one_time_keys.take()
        self.self_seed = rand(shamir.SECRET_BYTES)
        self.channels: dict[ClientId, bytes] = {}  # peer -> X25519 of the channel keys
        self.pairs: dict[ClientId, bytes] = {}  # peer -> X25519 of the mask keys
        self.pair_seeds: dict[ClientId, bytes] = {}  # peer -> key of their common mask
        self.links: list[bytes] = []  # of the chain that removable components follow from, its end included
        self.held: dict[ClientId, bytes] = {}  # peer -> shares of its mask key, its self seed, the links of its chain

    def keep_only_held(self) -> None:
        """Forgets this client's own secrets."""
        held = self.held
        self.wipe()
        self.held = held

    def wipe(self) -> None:
        """Empties the object and its keys, for whoever still refers to them: an error's traceback, say."""
        for key in (self.__dict__.get("channel_key"), self.__dict__.get("mask_key")):
            if key is not None:
                key.wipe()
        self.__dict__.clear()


class PairwiseClient(Lifecycle):
    """One client's part in one round; keeps the `ClientSession` contract.

    Args:
        config: the round.
        client_id: this client.
        identity: its long-term signing key, pinned in `roster`.
        roster: the pinned identities of all clients.
        policy: its own floors.
        history: what it remembers of all earlier rounds; one open session for each history.
        keys_in_advance: keys whose bundle the server has from an earlier round: this client then advertises none.
        next_keys: keys for a later round; their bundle goes with this client's last message.
        rand: source of uniform bytes; the default is the operating system's. Encapsulations use OpenSSL's generator.

    Raises:
        PolicyRefusal: the policy forbids this round.
        ValueError: the identity is not the one pinned for this client; keys are for another client, roster or suite, or
            not of the serial they must have.
    """

    def __init__(
        self,
        config: RoundConfig,
        client_id: ClientId,
        *,
        identity: Identity,
        roster: Roster,
        policy: ClientPolicy,
        history: History,
        keys_in_advance: OneTimeKeys | None = None,
        next_keys: OneTimeKeys | None = None,
        rand: RandomBytes = os.urandom,
    ) -> None:
        if roster.get(client_id) != identity.public:
            raise ValueError(f"the roster pins another identity for client {client_id}")
        policy.check_round(config, history)
        self._rules = Rules(config, roster)
        self._me = client_id
        self._identity = identity
        self._policy = policy
        self._history = history
        self._rand = rand
        self._phase = Phase.READY
        self._keys_in_advance = self._checked(keys_in_advance, history.serial)
        self._next_keys = self._checked(next_keys, history.serial + (keys_in_advance is None) + 1)
        self._secrets: _Secrets | None = None
        self._after_persist: Callable[[], list[Event]] | None = None
        self._own_bundle: KeyBundle | None = None
        # Lists of clients are as long as the cohort: four bytes a client, each kept until the next one replaces it.
        self._shown: ClientIds = _compact(())  # clients of the bundle list
        self._cohort: ClientIds = _compact(())
        self._survivors: ClientIds = _compact(())
        self._view = b""

    def start(self) -> list[Event]:
        """Advertises fresh keys, unless the server has a bundle of this client."""
        with self._step("start"):
            one_time = self._keys_in_advance or self._fresh_keys()
            self._own_bundle = bundle = one_time.bundle
            self._secrets = _Secrets(one_time, self._rand)
            message = AdvertiseKeys(context=self._rules.context, sender=self._me, bundle=bundle)
            frame = encode(message, suite=self._rules.suite)
            events: list[Event] = [] if self._keys_in_advance else [SendMessage(to=None, data=frame)]
            self._keys_in_advance = None
            return self._persist(self._burned(bundle), lambda: events)

    def receive(self, data: bytes) -> list[Event]:
        """Takes one message of the server; see `ClientSession.receive`."""
        handlers: dict[Phase, tuple[type[Message], Callable[[Any], list[Event]]]] = {
            Phase.ADVERTISE_KEYS: (KeyBundles, self._share_keys),
            Phase.SHARE_KEYS: (SealedShares, self._open_shares),
            Phase.MASKED_INPUT: (SurvivorList, self._check_survivors),
            Phase.CONSISTENCY_CHECK: (SurvivorSignatures, self._unmask),
        }
        if self._phase not in handlers or self._after_persist is not None:
            with self._guard():
                error = (
                    LocalProtocolError
                    if self._phase in (Phase.READY, Phase.FINISHED, Phase.ABORTED)
                    else RemoteProtocolError
                )
                raise error(
                    f"no message is expected in phase {self._phase.value}", client_id=self._me, phase=self._phase.value
                )
        kind, handler = handlers[self._phase]
        with self._step(kind.__name__):
            message = decode(
                data,
                kind,
                suite=self._rules.suite,
                removable=self._rules.config.removable,
                limit=self._rules.limit,
            )
            if message.context != self._rules.context:
                raise InconsistentViewError("the message belongs to another round, or to another view of its keys")
            if message.sender != SERVER:
                raise MalformedMessageError(f"only the server writes to clients, not sender {message.sender}")
            return handler(message)

    @property
    def removable_seeds(self) -> tuple[bytes, ...]:
        """Seeds of the components 1 ... T that the vector must hold, besides what stays in it; none without them.

        Raises:
            LocalProtocolError: no contribution is expected now.
        """
        if self._phase is not Phase.CONTRIBUTE:
            raise LocalProtocolError(
                f"no contribution is expected in phase {self._phase.value}",
                client_id=self._me,
                phase=self._phase.value,
            )
        return removable.seeds(self._rules, self._me, self._live().links)

    def contribute(self, vector: packing.UInt32Vector) -> list[Event]:
        """Masks the vector and sends it.

        Args:
            vector: uint32[length], entries below 2^modulus_bits; for packed lanes at most (2^modulus_bits - 1) //
                cohort.

        Raises:
            ValueError: wrong dtype, shape or range; nothing has happened, call again with a right one.
            LocalProtocolError: it is not the time to contribute; the session is dead.
        """
        config = self._rules.config
        if vector.dtype != np.uint32 or vector.shape != (config.length,):
            raise ValueError(f"the vector must be uint32[{config.length}], got {vector.dtype}{list(vector.shape)}")
        largest = packing.largest_entry(config.modulus_bits, config.cohort)
        if config.modulus_bits != 32 and int(vector.max()) > largest:
            raise ValueError(
                f"entries must be at most {largest} in lanes of {config.modulus_bits} bits, got {int(vector.max())}"
            )
        with self._step("contribute"):
            secrets = self._live()
            add = [self._rules.self_mask_seed(self._me, secrets.self_seed)]
            subtract: list[bytes] = []
            for peer, seed in secrets.pair_seeds.items():
                (add if peer > self._me else subtract).append(seed)
            # An array of its own, not a view into the frame: words that cross cache lines take a seventh longer.
            words = packing.pack(vector, config.modulus_bits)
            prg.apply_masks(words, add=add, subtract=subtract)
            cohort = self._rules.cohort_digest(self._cohort.tolist())
            message = MaskedInput(context=self._rules.context, sender=self._me, cohort=cohort)
            head = encode(message, suite=self._rules.suite)
            digest = sha256(head)
            digest.update(words.data)
            frame = b"".join((head, words.data, self._sign("MaskedInput", digest.digest())))
            secrets.keep_only_held()  # all that is still needed: whoever breaks in later finds nothing of its own
            return [SendMessage(to=None, data=frame)]

    def persisted(self) -> list[Event]:
        """The last record is durable: now the answer may leave."""
        with self._guard():
            if self._after_persist is None:
                raise LocalProtocolError(
                    "no record waits to be made durable", client_id=self._me, phase=self._phase.value
                )
            answer, self._after_persist = self._after_persist, None
            return answer()

    # The steps, in order.

    def _share_keys(self, message: KeyBundles) -> list[Event]:
        rules, secrets = self._rules, self._live()
        clients = tuple(ClientId(bundle.client) for bundle in message.bundles)
        check_increasing(clients)
        if len(clients) > rules.config.cohort:
            raise InconsistentViewError(f"{len(clients)} clients in a cohort of {rules.config.cohort}")
        rules.check_floor("advertised keys", clients, self._phase)
        strangers = [client for client in clients if client not in rules.roster]
        if strangers:
            raise InconsistentViewError(f"clients {strangers} are not on the roster")
        own = next((bundle for bundle in message.bundles if bundle.client == self._me), None)
        if own != self._own_bundle:
            raise InconsistentViewError("the server does not show this client's own keys as it advertised them")
        public_keys = [key for bundle in message.bundles for key in (bundle.channel_key, bundle.mask_key)]
        if not keys.all_distinct(public_keys):
            raise InconsistentViewError("two public keys of the round are equal")
        rules.bind(message.bundles)
        peers = self._peers(clients)
        for peer in peers:
            bundle = rules.bundles[peer]
            digest = bundle_digest(bundle, rules.roster, rules.suite)
            rules.roster.check_signature(peer, "KeyBundle", digest, bundle.signature)
        serials = {peer: rules.bundles[peer].serial for peer in peers}
        self._policy.check_bundles(serials, self._history)

        for peer in peers:
            problem = ""
            try:
                for public in (rules.bundles[peer].channel_key, rules.bundles[peer].mask_key):
                    keys.check_public_key(public, rules.suite)
                secrets.channels[peer] = secrets.channel_key.agree(rules.bundles[peer].channel_key)
                secrets.pairs[peer] = secrets.mask_key.agree(rules.bundles[peer].mask_key)
            except ValueError as error:
                problem = str(error)
            if problem:
                raise MalformedMessageError(f"a public key of client {peer}: {problem}", client_id=peer)
        answer = self._sealed_shares(secrets)
        self._shown = _compact(clients)
        rules.narrow(self._me)
        return self._persist(BundlesSeen(serials=serials), lambda: [answer])

    def _sealed_shares(self, secrets: _Secrets) -> SendMessage:
        """All secrets, shared among the holders and sealed to each; this client keeps its own share."""
        rules, holders = self._rules, self._rules.graph.holders(self._me)
        if rules.config.removable:
            secrets.links = removable.links(rules, self._me, self._rand(shamir.SECRET_BYTES))
        shares = shamir.share(
            (secrets.mask_key.secret, secrets.self_seed, *secrets.links[:-1]),
            threshold=rules.config.threshold,
            holders=len(holders),
            rand=self._rand,
        )
        plain = {holder: shares[slot].tobytes() for slot, holder in enumerate(holders)}
        secrets.held[self._me] = plain.pop(self._me)
        sealed = tuple(
            seal(
                rules,
                share,
                sender=self._me,
                receiver=holder,
                agreed=secrets.channels[holder],
                mask_secret=secrets.mask_key.secret,
            )
            for holder, share in plain.items()
        )
        commitment = b"".join((rules.seed_commitment(self._me, secrets.self_seed), *secrets.links[-1:]))
        return self._frame(ShareKeys(context=rules.context, sender=self._me, seed_commitment=commitment, sealed=sealed))

    def _open_shares(self, message: SealedShares) -> list[Event]:
        rules, secrets = self._rules, self._live()
        check_increasing(message.cohort)
        cohort = frozenset(map(ClientId, message.cohort))
        compact = _compact(message.cohort)
        if self._me not in cohort or not _within(compact, self._shown):
            raise InconsistentViewError("the cohort must hold this client and only clients that advertised keys")
        rules.check_floor("shared keys", cohort, self._phase)
        rules.check_holders(rules.graph.holders(self._me), cohort, self._phase)
        peers = self._peers(cohort)
        if len(message.sealed) != len(peers):
            raise InconsistentViewError(
                f"{len(message.sealed)} sealed shares for {len(peers)} neighbours in the cohort"
            )
        for peer, sealed in zip(peers, message.sealed, strict=True):
            self._unseal(peer, Sealed.of(sealed, rules.suite, rules.config.removable))
        secrets.channels, secrets.pairs = {}, {}
        self._shown, self._cohort = _compact(()), compact
        return [ContributionNeeded(cohort=cohort)]

    def _unseal(self, peer: ClientId, sealed: Sealed) -> None:
        """Takes what a peer sealed to this client: a share of each of its secrets, its half of the pair secret."""
        rules, secrets = self._rules, self._live()
        problem = ""  # raised outside the handler: an error that remembers another one remembers its keys
        try:
            shares = open_shares(
                rules,
                sealed,
                sender=peer,
                receiver=self._me,
                agreed=secrets.channels[peer],
                channel_key=secrets.channel_key,
            )
            shamir.decode_shares(shares, 2 + rules.config.removable)
            half = open_half(rules, sealed.half, sender=peer, receiver=self._me, mask_key=secrets.mask_key)
        except ValueError as error:
            problem = str(error)
        if problem:
            raise RemoteProtocolError(f"the share from client {peer} to client {self._me}: {problem}", client_id=peer)
        secrets.held[peer] = shares
        halves = {self._me: rules.pair_half(secrets.mask_key.secret, self._me, peer), peer: half}
        secrets.pair_seeds[peer] = rules.pair_mask_seed(secrets.pairs[peer], halves)

    def _check_survivors(self, message: SurvivorList) -> list[Event]:
        rules = self._rules
        check_increasing(message.survivors)
        survivors = frozenset(map(ClientId, message.survivors))
        compact = _compact(message.survivors)
        if self._me not in survivors or not _within(compact, self._cohort):
            raise InconsistentViewError("the survivors must hold this client and only clients of the cohort")
        rules.check_floor("survived", survivors, self._phase)
        rules.check_holders(rules.graph.holders(self._me), survivors, self._phase)
        record = SurvivorsSigned(model=rules.config.model, survivors=survivors)
        self._policy.check_survivors(record.model, record.survivors, self._history)
        self._view = rules.view(self._cohort.tolist(), survivors)
        self._cohort, self._survivors = _compact(()), compact
        answer = self._frame(self._consistency_check(self._me))
        return self._persist(record, lambda: [answer])

    def _unmask(self, message: SurvivorSignatures) -> list[Event]:
        rules, secrets = self._rules, self._live()
        check_increasing(message.signers)
        signers = tuple(ClientId(client) for client in message.signers)
        if len(message.signatures) != len(signers):
            raise MalformedMessageError(f"{len(message.signatures)} signatures of {len(signers)} signers")
        alive = frozenset(map(ClientId, self._survivors.tolist()))
        if not alive >= set(signers):
            raise InconsistentViewError("a client that did not survive signed the survivor set")
        rules.check_holders(rules.graph.holders(self._me), set(signers), self._phase)
        for signer, signature in zip(signers, message.signatures, strict=True):
            digest = sha256(encode(self._consistency_check(signer), suite=rules.suite)).digest()
            try:
                rules.roster.check_signature(signer, "ConsistencyCheck", digest, signature)
            except InvalidSignatureError as error:
                raise InconsistentViewError(
                    f"client {signer} did not sign this view of cohort and survivors", client_id=signer
                ) from error
        shares = self._answered_shares(secrets.held, alive)
        later = self._next_keys.bundle if self._next_keys else None
        attached = (later,) if later else ()
        answer = self._frame(Unmask(context=rules.context, sender=self._me, shares=shares, next_bundle=attached))
        events: list[Event] = [answer, SurvivorsAgreed(survivors=alive)]
        self._erase()
        return self._persist(self._burned(later), lambda: events) if later else events

    def _answered_shares(self, held: dict[ClientId, bytes], alive: frozenset[ClientId]) -> bytes:
        """One share of each owner's mask key or self seed; then of one link of each survivor's chain, if any must go.

        Which link follows from the number of survivors, on whom t signatures were verified, and from nothing else.
        """

        def share(owner: ClientId, place: int) -> bytes:
            return held[owner][place * shamir.SHARE_BYTES : (place + 1) * shamir.SHARE_BYTES]

        shares = [share(owner, int(owner in alive)) for owner in sorted(held)]
        first = self._rules.config.first_removed(len(alive))
        if first <= self._rules.config.removable:
            shares += [share(owner, 1 + first) for owner in sorted(held) if owner in alive]
        return b"".join(shares)

    # What the steps share.

    def _peers(self, clients: Iterable[ClientId]) -> tuple[ClientId, ...]:
        """This client's neighbours among `clients`, in increasing order."""
        there = set(clients)
        return tuple(holder for holder in self._rules.graph.holders(self._me) if holder != self._me and holder in there)

    def _consistency_check(self, client: ClientId) -> ConsistencyCheck:
        """What `client` signs if it sees the same cohort and survivors as this client."""
        return ConsistencyCheck(context=self._rules.context, sender=client, view=self._view)

    def _frame(self, message: Message) -> SendMessage:
        covered = encode(message, suite=self._rules.suite)
        return SendMessage(to=None, data=covered + self._sign(type(message).__name__, sha256(covered).digest()))

    def _sign(self, kind: str, digest: bytes) -> bytes:
        return self._identity.sign(signed_text(kind, digest))

    def _fresh_keys(self) -> OneTimeKeys:
        rules = self._rules
        return OneTimeKeys(
            self._me,
            identity=self._identity,
            roster=rules.roster,
            suite=rules.suite,
            history=self._history,
            rand=self._rand,
        )

    def _checked(self, one_time: OneTimeKeys | None, serial: int) -> OneTimeKeys | None:
        """Keys made elsewhere must fit the round, and be this client's latest."""
        if one_time is None:
            return None
        made = (one_time.bundle.client, one_time.roster_digest, one_time.suite, one_time.bundle.serial)
        if made != (self._me, self._rules.roster.digest, self._rules.suite, serial):
            raise ValueError(
                f"keys of bundle {one_time.bundle.serial} of client {one_time.bundle.client} do not fit: needed is "
                f"bundle {serial} of client {self._me}, with this round's roster and suite"
            )
        return one_time

    def _burned(self, bundle: KeyBundle) -> KeysAdvertised:
        return KeysAdvertised(round_id=self._rules.config.round_id, serial=bundle.serial)

    def _persist(self, record: Record, answer: Callable[[], list[Event]]) -> list[Event]:
        self._after_persist = answer
        return [PersistBeforeSend(record=record)]

    def _live(self) -> _Secrets:
        if self._secrets is None:
            raise LocalProtocolError("the round is over", client_id=self._me, phase=self._phase.value)
        return self._secrets

    def _erase(self) -> None:
        if self._secrets is not None:
            self._secrets.wipe()
        self._secrets = None
        self._shown = self._cohort = self._survivors = _compact(())
        self._keys_in_advance = self._next_keys = None
        self._after_persist = None

    @contextmanager
    def _step(self, trigger: str) -> Iterator[None]:
        """One transition of the table: refused out of order, taken only if the step succeeds."""
        with self._guard():
            following = CLIENT_TRANSITIONS.get((self._phase, trigger))
            if following is None:
                raise LocalProtocolError(
                    f"{trigger} is not possible in phase {self._phase.value}",
                    client_id=self._me,
                    phase=self._phase.value,
                )
            yield
            self._phase = following


def _compact(clients: Sequence[int]) -> ClientIds:
    """A list of clients as long as the cohort, in as little memory as ids take."""
    return np.array(clients, dtype=np.int32)


def _within(part: ClientIds, whole: ClientIds) -> bool:
    """Whether all clients of one list, without repetitions, are in another."""
    return bool(np.isin(part, whole, assume_unique=True).all())

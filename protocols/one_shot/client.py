"""The client's part: it checks the committee, speaks once, and erases.

Experimental: the parameters need the lattice estimator; the written argument is under review; so are patents.
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from ..errors import MalformedMessageError
from ..policy import BundlesSeen, KeysAdvertised
from ..primitives import key_shares, keys, ring_mask, share_proof
from ..primitives.packing import UInt32Vector
from ..primitives.prg import SEED_BYTES
from ..session import ContributionNeeded, Event, Phase, SendMessage
from ..wire import encode
from .party import Party, Secrets
from .rules import CANARIES, CLIENT_TRANSITIONS, WORD, member_bundle_digest, signature_kind
from .sealed import seal
from .wire import Committee, Contribution, MemberBundle, sealed_digests


class OneShotClient(Party):
    """One client's part in one round; keeps the `ClientSession` contract. It learns nothing after it has spoken.

    Args and errors are those of `Party`.
    """

    _transitions = CLIENT_TRANSITIONS
    _awaited = Committee

    def start(self) -> list[Event]:
        """Makes this round's key; nothing is sent before the committee is known."""
        with self._step("start"):
            # X25519 in both suites: what is encapsulated to members needs no key of this client's.
            self._secrets = Secrets(keys.AgreementKey(self._rand(keys.SECRET_KEY_BYTES), keys.CLASSICAL))
            record = KeysAdvertised(round_id=self._rules.config.round_id, serial=self._history.serial + 1)
            return self._persist(record, list)

    def contribute(self, vector: UInt32Vector) -> list[Event]:
        """Masks the vector, seals shares of the mask's key to the members, and sends both.

        Args:
            vector: uint32[length], entries below 2^modulus_bits.

        Raises:
            ValueError: wrong dtype, shape or range; nothing has happened, call again with a right one.
            LocalProtocolError: it is not the time to contribute; the session is dead.
        """
        rules, config = self._rules, self._rules.config
        if vector.dtype != np.uint32 or vector.shape != (config.length,):
            raise ValueError(f"the vector must be uint32[{config.length}], got {vector.dtype}{list(vector.shape)}")
        if int(vector.max()) >> config.modulus_bits:
            raise ValueError(f"entries must be below 2^{config.modulus_bits}, got {int(vector.max())}")
        with self._step("contribute"):
            secrets = self._live()
            words = np.zeros(config.length + CANARIES, dtype=WORD)
            np.left_shift(vector, np.uint32(config.noise_bits), out=words[: config.length])
            key = ring_mask.sample(ring_mask.DEGREE, seed=self._rand(SEED_BYTES))
            ring_mask.add_errors(words, seed=self._rand(SEED_BYTES))
            ring_mask.add_mask(words, key, seed=rules.matrix_seed)
            digest = sha256(words.data).digest()
            shares, first = key_shares.share(key, rules.slots, threshold=config.threshold, rand=self._rand)
            sealed = [
                seal(
                    rules,
                    share,
                    client=self._me,
                    member=member,
                    agreed=secrets.channels[member],
                    ephemeral_key=secrets.key.public,
                    vector=digest,
                )
                for member, share in zip(rules.bundles, shares, strict=True)
            ]
            digests = sealed_digests(sealed)
            challenge = rules.challenge(self._me, secrets.key.public, digest, digests)
            covered = encode(
                Contribution(
                    context=rules.context,
                    sender=self._me,
                    ephemeral_key=secrets.key.public,
                    vector=digest,
                    sealed=digests,
                    proof=share_proof.prove(first, challenge),
                ),
                suite=rules.suite,
            )
            signature = self._sign(signature_kind(Contribution), sha256(covered).digest())
            self._erase()
            return [SendMessage(to=None, data=b"".join((covered, signature, *sealed, words.data)))]

    def _take(self, message: Committee) -> list[Event]:
        rules, secrets = self._rules, self._live()
        rules.check_bundles(message.bundles, Phase.ADVERTISE_KEYS)
        rules.bind(message.bundles)
        for member, bundle in rules.bundles.items():
            rules.roster.check_signature(
                member,
                signature_kind(MemberBundle),
                member_bundle_digest(bundle, rules.roster, rules.suite),
                bundle.signature,
            )
            problem = ""  # raised outside the handler: an error that remembers another one remembers its keys
            try:
                keys.check_public_key(bundle.key, rules.suite)
                secrets.channels[member] = secrets.key.agree(bundle.key)
            except ValueError as error:
                problem = str(error)
            if problem:
                raise MalformedMessageError(f"the key of member {member}: {problem}", client_id=member)
        serials = {member: bundle.serial for member, bundle in rules.bundles.items()}
        self._policy.check_bundles(serials, self._history)
        return self._persist(BundlesSeen(serials=serials), lambda: [ContributionNeeded(cohort=frozenset(rules.roster))])

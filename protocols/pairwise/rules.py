"""What client and server derive from the agreed configuration and roster, in exactly the same way."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from hashlib import sha256

import msgspec

from ..errors import ClientId, TooFewClientsError
from ..graph import NeighbourGraph
from ..primitives import keys
from ..roster import Roster, bundle_root
from ..session import Phase, RoundConfig
from ..wire import KeyBundle, message_limit


def round_context(config: RoundConfig, roster: Roster) -> bytes:
    """The digest of a round before any keys are known: its whole configuration and who may take part."""
    return sha256(b"secagg/v1/pairwise/context0" + config.digest() + roster.digest).digest()


def key_parts(bundle: KeyBundle) -> list[bytes]:
    """The public keys of a bundle, one for each algorithm and usage: none of them may occur twice in a round."""
    return [part for key in (bundle.channel_key, bundle.mask_key) for part in keys.parts(key)]


class Rules:
    """What both sides derive from the agreed configuration and roster, in the same way."""

    def __init__(self, config: RoundConfig, roster: Roster) -> None:
        if config.cohort > len(roster):
            raise ValueError(f"the cohort has {config.cohort} clients, the roster only {len(roster)}")
        self.config = config
        self.roster = roster
        self.context = round_context(config, roster)
        self.suite = keys.SUITES[config.suite]
        keys.check_available(self.suite)
        self.limit = message_limit(config.cohort, self.suite, config.removable)
        self.bundles: dict[ClientId, KeyBundle] = {}
        self.graph: NeighbourGraph

    def bind(self, bundles: Sequence[KeyBundle]) -> None:
        """Fixes the keys of the round: from here on the context covers them, and the graph follows from them."""
        root = bundle_root(bundles)
        self.bundles = {ClientId(bundle.client): bundle for bundle in bundles}
        self.context = sha256(b"secagg/v1/pairwise/context" + self.context + root).digest()
        self.graph = NeighbourGraph(tuple(self.bundles), degree=self.config.degree, seed=self.context)

    def narrow(self, client: ClientId) -> None:
        """Lets go of what grows with the cohort and one client needs no more: everybody's keys, and the ring."""
        self.bundles = {}
        self.graph = self.graph.around(client)

    def view(self, cohort: Iterable[ClientId], survivors: Iterable[ClientId]) -> bytes:
        """The digest of one view of the round; signatures over it are what makes a survivor set agreed."""
        lists = msgspec.msgpack.encode((sorted(cohort), sorted(survivors)))
        return sha256(b"secagg/v1/pairwise/view" + self.context + lists).digest()

    def cohort_digest(self, cohort: Iterable[ClientId]) -> bytes:
        """The digest of the clients that a vector is masked with: masks of different cohorts do not cancel."""
        return sha256(b"secagg/v1/pairwise/cohort" + self.context + msgspec.msgpack.encode(sorted(cohort))).digest()

    def seed_commitment(self, client: ClientId, self_seed: bytes) -> bytes:
        """Hides the uniform 256-bit seed and binds its owner to it."""
        return keys.derive(self_seed, context=self.context, usage=b"pairwise/self-seed-commitment", ids=(client,))

    def self_mask_seed(self, client: ClientId, self_seed: bytes) -> bytes:
        """The key of the keystream PRG(b_u)."""
        return keys.derive(self_seed, context=self.context, usage=b"pairwise/self-mask", ids=(client,))

    def next_link(self, client: ClientId, link: bytes) -> bytes:
        """r_{k+1} of a client's chain of removable components, from r_k."""
        return keys.derive(link, context=self.context, usage=b"pairwise/removable-next", ids=(client,))

    def removable_seed(self, client: ClientId, link: bytes) -> bytes:
        """The seed of component k, from r_k."""
        return keys.derive(link, context=self.context, usage=b"pairwise/removable-seed", ids=(client,))

    def channel_key(self, secret: bytes, sender: ClientId, receiver: ClientId) -> bytes:
        """The key that seals the one message from `sender` to `receiver`."""
        return keys.derive(secret, context=self.context, usage=b"pairwise/channel", ids=(sender, receiver))

    def pair_half(self, mask_secret: bytes, client: ClientId, peer: ClientId) -> bytes:
        """A client's half z_uv of the secret with a peer; empty in the classical suite."""
        if not self.suite.ciphertext_bytes:
            return b""
        return keys.derive(mask_secret, context=self.context, usage=b"pairwise/pair-half", ids=(client, peer))

    def half_commitment(self, half: bytes, client: ClientId, peer: ClientId) -> bytes:
        """Hides a uniform 256-bit half and binds its owner to it."""
        return keys.derive(half, context=self.context, usage=b"pairwise/pair-half-commitment", ids=(client, peer))

    def half_key(self, secret: bytes, sender: ClientId, receiver: ClientId) -> bytes:
        """The key that seals a half on its way from `sender` to `receiver`."""
        return keys.derive(secret, context=self.context, usage=b"pairwise/half-seal", ids=(sender, receiver))

    def pair_mask_seed(self, agreed: bytes, halves: Mapping[ClientId, bytes]) -> bytes:
        """The key of the keystream PRG(s_uv), the same from both ends.

        Args:
            agreed: X25519 of the two mask keys.
            halves: the half that each of the two clients contributes.
        """
        low, high = sorted(halves)
        secret = agreed + halves[low] + halves[high]
        return keys.derive(secret, context=self.context, usage=b"pairwise/pair-mask", ids=(low, high))

    def check_floor(self, what: str, clients: Sequence[ClientId] | frozenset[ClientId], phase: Phase) -> None:
        """Every set of clients in a round stays at or above the floor."""
        floor = self.config.min_survivors
        if len(clients) < floor:
            raise TooFewClientsError(f"{len(clients)} clients {what}, the floor is {floor}", phase=phase.value)

    def check_holders(self, holders: Sequence[ClientId], present: Container[ClientId], phase: Phase) -> None:
        """Enough holders of one client's secrets are present to reconstruct them."""
        there = sum(holder in present for holder in holders)
        if there < self.config.threshold:
            raise TooFewClientsError(
                f"{there} holders of a secret are left, the threshold is {self.config.threshold}", phase=phase.value
            )

"""Valid messages of every kind, for hypothesis and for the table of sizes."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from protocols.wire import (
    SERVER,
    AdvertiseKeys,
    ConsistencyCheck,
    Invitation,
    KeyBundle,
    KeyBundles,
    MaskedInput,
    Message,
    SealedShares,
    ShareKeys,
    SurvivorList,
    SurvivorSignatures,
    Unmask,
)
from tests.classical import SEALED_BYTES

KINDS: dict[str, type[Message]] = {
    kind.__name__: kind for kind in Message.__subclasses__() if kind.__module__ == Message.__module__
}
SIGNED = (ShareKeys, MaskedInput, ConsistencyCheck, Unmask)

digests = st.binary(min_size=32, max_size=32)
ids = st.integers(1, 2**31 - 1)
senders = st.integers(0, 2**31 - 1)
id_lists = st.lists(ids, max_size=6).map(tuple)
signatures = st.binary(min_size=64, max_size=64)
sealed = st.lists(st.binary(min_size=SEALED_BYTES, max_size=SEALED_BYTES), max_size=4).map(tuple)
bundles = st.builds(
    KeyBundle,
    client=ids,
    serial=st.integers(1, 2**62 - 1),
    fresh=digests,
    channel_key=digests,
    mask_key=digests,
    signature=signatures,
)

_FIELDS: dict[type[Message], dict[str, st.SearchStrategy[object]]] = {
    Invitation: {"round_id": digests, "model": digests},
    AdvertiseKeys: {"bundle": bundles},
    KeyBundles: {"bundles": st.lists(bundles, max_size=3).map(tuple)},
    ShareKeys: {"seed_commitment": digests, "sealed": sealed},
    SealedShares: {"cohort": id_lists, "sealed": sealed},
    MaskedInput: {"cohort": digests},
    SurvivorList: {"survivors": id_lists},
    ConsistencyCheck: {"view": digests},
    SurvivorSignatures: {"signers": id_lists, "signatures": st.lists(signatures, max_size=3).map(tuple)},
    Unmask: {"shares": st.binary(max_size=80), "next_bundle": st.lists(bundles, max_size=1).map(tuple)},
}


def messages(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Messages of one kind, with any field values that the wire allows."""
    return st.builds(kind, context=digests, sender=senders, **_FIELDS[kind])


def _bundle(client: int, serial: int) -> KeyBundle:
    key = bytes(32)
    return KeyBundle(client=client, serial=serial, fresh=key, channel_key=key, mask_key=key, signature=bytes(64))


def full_round(n: int, *, first_id: int = 1, serial: int = 1, removable: int = 0) -> dict[str, Message]:
    """One message of each kind as it travels in a complete graph of n clients, nobody missing."""
    digest, client = bytes(32), first_id
    clients = tuple(range(first_id, first_id + n))
    shares = (bytes(SEALED_BYTES + 36 * removable),) * (n - 1)
    commitments, said = (bytes(64), bytes(72 * n)) if removable else (digest, bytes(36 * n))
    build: dict[str, Callable[[], Message]] = {
        "Invitation": lambda: Invitation(context=digest, sender=SERVER, round_id=digest, model=digest),
        "AdvertiseKeys": lambda: AdvertiseKeys(context=digest, sender=client, bundle=_bundle(client, serial)),
        "KeyBundles": lambda: KeyBundles(
            context=digest, sender=SERVER, bundles=tuple(_bundle(one, serial) for one in clients)
        ),
        "ShareKeys": lambda: ShareKeys(context=digest, sender=client, seed_commitment=commitments, sealed=shares),
        "SealedShares": lambda: SealedShares(context=digest, sender=SERVER, cohort=clients, sealed=shares),
        "MaskedInput": lambda: MaskedInput(context=digest, sender=client, cohort=digest),
        "SurvivorList": lambda: SurvivorList(context=digest, sender=SERVER, survivors=clients),
        "ConsistencyCheck": lambda: ConsistencyCheck(context=digest, sender=client, view=digest),
        "SurvivorSignatures": lambda: SurvivorSignatures(
            context=digest, sender=SERVER, signers=clients, signatures=(bytes(64),) * n
        ),
        "Unmask": lambda: Unmask(context=digest, sender=client, shares=said),
    }
    return {name: make() for name, make in build.items()}

"""A client's session between two messages that different processes handle, sealed, and good for one use.

Some engines start a new process for every message. What a session must not lose in between leaves it here, as one
ciphertext. This is the only way by which secrets leave a session; whoever needs no such engine imports nothing from
here.

Rules:

1. A session is moved, never copied: sealing it ends it in this process, and erases what it held.
2. A sealing key seals one snapshot. The driver makes it, keeps it where the ciphertext is not, and destroys it durably
   *before* it opens the snapshot: a state that was opened once cannot be opened again, by anybody. A session that ran
   twice could contribute twice, or answer for two survivor sets.
3. AES-256-GCM; the associated data name what is sealed and the driver's own context (client, round, serial number).
4. Only a session at rest is sealed: one that waits for a message of the server, with no record left to make durable.
5. The identity, the roster, the policy and the history are not in a snapshot: the opener brings its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

import msgspec

from .errors import ClientId, LocalProtocolError
from .graph import NeighbourGraph
from .pairwise.client import PairwiseClient, _compact, _Secrets
from .pairwise.one_time_keys import OneTimeKeys
from .pairwise.rules import Rules
from .policy import ClientPolicy, History
from .primitives import keys
from .roster import Identity, Roster
from .session import Phase, RoundConfig
from .wire import KeyBundle

KEY_BYTES = 32
AT_REST = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.CONSISTENCY_CHECK)
_LABEL = b"secagg/v1/snapshot/"
_BY_PEER = ("channels", "pairs", "pair_seeds", "held")


class _Keys(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One-time keys that have not been taken."""

    suite: int
    roster_digest: bytes
    channel_secret: bytes
    mask_secret: bytes
    bundle: KeyBundle


class _Session(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """All that a session remembers; what it has erased already is None or empty."""

    config: list[int | bytes]  # the fields of RoundConfig, in order
    context: bytes
    holders: list[int]  # of this client's secrets; none before the keys of the round are known
    client: int
    phase: str
    own_bundle: KeyBundle
    shown: list[int]
    cohort: list[int]
    survivors: list[int]
    view: bytes
    channel_secret: bytes | None
    mask_secret: bytes | None
    self_seed: bytes | None
    by_peer: dict[str, dict[int, bytes]]
    links: list[bytes] | None
    next_keys: _Keys | None


class Opened(NamedTuple):
    """A session taken up again; the keys whose bundle goes with its last message; the round it is a part of."""

    session: PairwiseClient
    next_keys: OneTimeKeys | None
    config: RoundConfig


def seal_session(session: PairwiseClient, *, key: bytes, context: bytes) -> bytes:
    """Moves a session out of this process; it is dead here afterwards.

    Args:
        session: a session that waits for a message of the server.
        key: 32 fresh uniform bytes, for this one call.
        context: what the driver wants bound; `open_session` must name the same.

    Raises:
        LocalProtocolError: the session is not at rest; it is dead.
    """
    with session._guard():
        secrets, rules = session._secrets, session._rules
        if session.phase not in AT_REST or session._after_persist is not None or secrets is None:
            raise LocalProtocolError(
                f"a session in phase {session.phase.value} cannot be put away",
                client_id=session._me,
                phase=session.phase.value,
            )
        known = vars(secrets)
        frozen = _Session(
            config=[getattr(rules.config, name) for name in _config_names()],
            context=rules.context,
            holders=[] if session.phase is Phase.ADVERTISE_KEYS else list(rules.graph.holders(session._me)),
            client=session._me,
            phase=session.phase.value,
            own_bundle=_present(session._own_bundle),
            shown=session._shown.tolist(),
            cohort=session._cohort.tolist(),
            survivors=session._survivors.tolist(),
            view=session._view,
            channel_secret=_secret(known.get("channel_key")),
            mask_secret=_secret(known.get("mask_key")),
            self_seed=known.get("self_seed"),
            by_peer={name: dict(known[name]) for name in _BY_PEER if name in known},
            links=known.get("links"),
            next_keys=None if session._next_keys is None else _frozen(session._next_keys),
        )
        sealed = _seal(frozen, b"session", key=key, context=context)
    session._abort()
    return sealed


def open_session(
    sealed: bytes,
    *,
    key: bytes,
    context: bytes,
    identity: Identity,
    roster: Roster,
    policy: ClientPolicy,
    history: History,
    rand: Callable[[int], bytes] = os.urandom,
) -> Opened:
    """Takes a session up again. The caller has destroyed its own copy of the key, durably.

    Args:
        sealed: what `seal_session` gave.
        key: the key of that call.
        context: the context of that call.
        identity: the client's long-term signing key.
        roster: the pinned identities; the same as before.
        policy: the client's floors.
        history: what the client remembers now.
        rand: source of uniform bytes.

    Raises:
        ValueError: key, context or roster are not those of the sealing, or the ciphertext was changed.
    """
    frozen = _open(sealed, _Session, b"session", key=key, context=context)
    me = ClientId(frozen.client)
    if roster.get(me) != identity.public:
        raise ValueError(f"the roster pins another identity for client {me}")
    values: dict[str, Any] = dict(zip(_config_names(), frozen.config, strict=True))
    rules = Rules(RoundConfig(**values), roster)
    rules.context = frozen.context
    if frozen.holders:
        holders = tuple(map(ClientId, frozen.holders))
        rules.graph = NeighbourGraph(holders, degree=len(holders), seed=b"").around(me)
    session = object.__new__(PairwiseClient)
    session._rules = rules
    session._me = me
    session._identity = identity
    session._policy = policy
    session._history = history
    session._rand = rand
    session._phase = Phase(frozen.phase)
    session._keys_in_advance = None
    session._next_keys = None if frozen.next_keys is None else _thawed(frozen.next_keys)
    session._after_persist = None
    session._own_bundle = frozen.own_bundle
    session._shown, session._cohort, session._survivors = map(_compact, (frozen.shown, frozen.cohort, frozen.survivors))
    session._view = frozen.view
    secrets = object.__new__(_Secrets)
    present: dict[str, object] = {
        name: {ClientId(peer): value for peer, value in frozen.by_peer[name].items()} for name in frozen.by_peer
    }
    if frozen.channel_secret is not None and frozen.mask_secret is not None:
        present["channel_key"] = keys.AgreementKey(frozen.channel_secret, rules.suite)
        present["mask_key"] = keys.AgreementKey(frozen.mask_secret, rules.suite)
        present["self_seed"] = frozen.self_seed
    if frozen.links is not None:
        present["links"] = frozen.links
    vars(secrets).update(present)
    session._secrets = secrets
    return Opened(session, session._next_keys, rules.config)


def seal_keys(one_time: OneTimeKeys, *, key: bytes, context: bytes) -> bytes:
    """Moves keys for a later round out of this process; arguments as for `seal_session`.

    Raises:
        LocalProtocolError: the keys served a round before.
    """
    frozen = _frozen(one_time)
    one_time.take()
    return _seal(frozen, b"keys", key=key, context=context)


def open_keys(sealed: bytes, *, key: bytes, context: bytes) -> OneTimeKeys:
    """Takes keys up again; arguments as for `open_session`.

    Raises:
        ValueError: key or context are not those of the sealing, or the ciphertext was changed.
    """
    return _thawed(_open(sealed, _Keys, b"keys", key=key, context=context))


_Frozen = TypeVar("_Frozen", _Keys, _Session)


def _seal(frozen: _Keys | _Session, what: bytes, *, key: bytes, context: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a sealing key has {KEY_BYTES} bytes, got {len(key)}")
    return keys.seal(key, msgspec.msgpack.encode(frozen), associated=_LABEL + what + b"/" + context)


def _open(sealed: bytes, kind: type[_Frozen], what: bytes, *, key: bytes, context: bytes) -> _Frozen:
    opened = keys.unseal(key, sealed, associated=_LABEL + what + b"/" + context)
    return msgspec.msgpack.decode(opened, type=kind)


def _frozen(one_time: OneTimeKeys) -> _Keys:
    if one_time._pair is None:
        raise LocalProtocolError(f"the keys of bundle {one_time.bundle.serial} served a round before")
    channel_key, mask_key = one_time._pair
    return _Keys(
        suite=one_time.suite.number,
        roster_digest=one_time.roster_digest,
        channel_secret=channel_key.secret,
        mask_secret=mask_key.secret,
        bundle=one_time.bundle,
    )


def _thawed(frozen: _Keys) -> OneTimeKeys:
    one_time = object.__new__(OneTimeKeys)
    one_time.suite = keys.SUITES[frozen.suite]
    one_time.roster_digest = frozen.roster_digest
    one_time.bundle = frozen.bundle
    one_time._pair = (
        keys.AgreementKey(frozen.channel_secret, one_time.suite),
        keys.AgreementKey(frozen.mask_secret, one_time.suite),
    )
    return one_time


def _config_names() -> tuple[str, ...]:
    return tuple(field.name for field in fields(RoundConfig))


def _secret(key: object) -> bytes | None:
    return key.secret if isinstance(key, keys.AgreementKey) else None


def _present(bundle: KeyBundle | None) -> KeyBundle:
    if bundle is None:
        raise LocalProtocolError("a session without keys cannot be put away")
    return bundle

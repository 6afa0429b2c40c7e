"""What a client seals to a committee member, through the server: its share of the mask's key. Experimental.

Rules:

1. The key is derived from X25519 of the client's ephemeral key and the member's key and, in the hybrid suite, from a
   KEM secret that the client encapsulates to the member. It seals this one share.
2. Round, client, member, the client's ephemeral key, the digest of its masked vector and the KEM ciphertext are
   associated data: nothing of it can be exchanged.
3. Nobody but the member needs the KEM secret again: no server reconstructs keys here, so one ciphertext is enough, and
   a hybrid round has no message more than a classical one.
"""

from __future__ import annotations

from ..errors import ClientId
from ..primitives import keys
from .rules import Rules


def seal(
    rules: Rules,
    share: bytes,
    *,
    client: ClientId,
    member: ClientId,
    agreed: bytes,
    ephemeral_key: bytes,
    vector: bytes,
) -> bytes:
    """KEM ciphertext, empty in the classical suite, and sealed share.

    Args:
        rules: the round, with its keys bound.
        share: the encoded share.
        client: who seals it.
        member: who may open it.
        agreed: X25519 of the ephemeral key and the member's key.
        ephemeral_key: the client's public X25519 key.
        vector: the digest of its masked vector.
    """
    secret, ciphertext = keys.encapsulate(rules.bundles[member].key, rules.suite)
    associated = rules.associated(client, member, ephemeral_key, vector) + ciphertext
    return ciphertext + keys.seal(rules.channel(agreed + secret, client, member), share, associated=associated)


def unseal(
    rules: Rules,
    sealed: bytes,
    *,
    client: ClientId,
    member: ClientId,
    key: keys.AgreementKey,
    ephemeral_key: bytes,
    vector: bytes,
) -> bytes:
    """The encoded share.

    Raises:
        ValueError: it does not open, or the client's key is none that anybody should agree with.
    """
    ciphertext, box = sealed[: rules.suite.ciphertext_bytes], sealed[rules.suite.ciphertext_bytes :]
    secret = key.agree(ephemeral_key) + key.decapsulate(ciphertext)
    associated = rules.associated(client, member, ephemeral_key, vector) + ciphertext
    return keys.unseal(rules.channel(secret, client, member), box, associated=associated)

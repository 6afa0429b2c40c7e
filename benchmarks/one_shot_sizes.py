"""How many bytes each message of a one-shot round has, for one client and for one committee member.

The rules of `sizes` hold, and: the member is the one with the highest id, so it gets a whole share of each client's
key, not the seed of one; it attaches the bundle of its next round.
"""

from __future__ import annotations

from typing import Any

from protocols.one_shot.rules import CANARIES
from protocols.one_shot.wire import (
    Committee,
    Contribution,
    MemberBundle,
    MemberKeys,
    PartialSum,
    SealedContribution,
    UnmaskRequest,
    sealed_bytes,
)
from protocols.primitives import key_shares, keys, share_proof
from protocols.primitives.keys import SIGNATURE_BYTES, Suite
from protocols.wire import FRESH_BYTES, SERVER, encode

from .rounds import one_shot_config

DIGEST = bytes(32)


def count_one_shot(*, clients: int, dimension: int, members: int, bits: int, suite: Suite) -> dict[str, Any]:
    """The facts that the benchmark prints; sizes in bytes."""
    config = one_shot_config(
        clients=clients, dropouts=0, dimension=dimension, bits=bits, members=members, suite=suite.number
    )
    threshold = config.threshold
    shares = [sealed_bytes(key_shares.encoded_bytes(i, threshold), suite) for i in range(members)]
    contribution = _contribution(clients, members, threshold)
    bundles = tuple(_bundle(member, suite) for member in config.committee)
    sealed = tuple(
        SealedContribution(
            contribution=_contribution(client, members, threshold),
            signature=bytes(SIGNATURE_BYTES),
            share=bytes(shares[-1]),
        )
        for client in range(1, clients + 1)
    )
    member: dict[str, Any] = {"context": DIGEST, "sender": config.committee[-1]}
    answer = PartialSum(**member, view=DIGEST, share=bytes(key_shares.SUM_BYTES), next_bundle=bundles[-1:])
    server: dict[str, Any] = {"context": DIGEST, "sender": SERVER, "bundles": bundles}
    vector, float32 = 4 * (dimension + CANARIES), 4 * dimension
    total = len(encode(contribution, suite=suite)) + SIGNATURE_BYTES + sum(shares) + vector
    return {
        "protocol": "one_shot",
        "clients": clients,
        "dimension": dimension,
        "members": members,
        "threshold": threshold,
        "bits": config.modulus_bits,
        "suite": suite.number,
        "upload": {"Contribution": total},
        "download": {"Committee": len(encode(Committee(**server), suite=suite))},
        "member_upload": {
            "MemberKeys": len(encode(MemberKeys(**member, bundle=bundles[-1]), suite=suite)),
            "PartialSum": len(encode(answer, suite=suite)) + SIGNATURE_BYTES,
        },
        "member_download": {"UnmaskRequest": len(encode(UnmaskRequest(**server, contributions=sealed), suite=suite))},
        "vector_bytes": vector,
        "float32_bytes": float32,
        "overhead_percent": 100 * (total / float32 - 1),
        "ratio_to_float32": total / float32,
    }


def _contribution(client: int, members: int, threshold: int) -> Contribution:
    return Contribution(
        context=DIGEST,
        sender=client,
        ephemeral_key=bytes(keys.CLASSICAL.public_key_bytes),
        vector=DIGEST,
        sealed=(DIGEST,) * members,
        proof=bytes(share_proof.proof_bytes(threshold)),
    )


def _bundle(member: int, suite: Suite) -> MemberBundle:
    return MemberBundle(
        member=member,
        serial=1,
        fresh=bytes(FRESH_BYTES),
        key=bytes(suite.public_key_bytes),
        signature=bytes(SIGNATURE_BYTES),
    )

"""The pairwise protocol again, from `protocols/SPEC.md` alone: nothing of the library is imported.

Slow and obvious: Python integers, hashlib, hmac, struct, and the primitives of `cryptography`. `honest_round` plays all
parties of a script of `tests/vectors/pairwise` and gives every byte that travels. The server's half removes masks with
what it reconstructs from the shares it was sent, not with what the clients know.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256, shake_256
from math import prod
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.protocols.ml_kem import encapsulate

P = 65521
CONFIG_FIELDS = (
    "round_id", "cohort", "threshold", "min_survivors", "degree", "corrupt_holders", "length", "modulus_bits",
    "model", "binding", "suite",
)  # fmt: skip
# Section 4: tag, then the fields after context and sender. `n` bytes are an int, lists are one-element lists.
BUNDLE = ("id", "serial", 32, "key", "key", 64)
SIZES = {1: {"key": 32, "sealed": 88}, 2: {"key": 1216, "sealed": 2344}}  # by suite, without removable components
MESSAGES: dict[str, tuple[int, tuple[Any, ...]]] = {
    "Invitation": (0, (32, 32)),
    "AdvertiseKeys": (1, (BUNDLE,)),
    "KeyBundles": (2, ([BUNDLE],)),
    "ShareKeys": (3, ("commitments", ["sealed"])),
    "SealedShares": (4, (["id"], ["sealed"])),
    "MaskedInput": (5, (32,)),
    "SurvivorList": (6, (["id"],)),
    "ConsistencyCheck": (7, (32,)),
    "SurvivorSignatures": (8, (["id"], [64])),
    "Unmask": (9, ("bytes", [BUNDLE])),
}
RANGES = {"id": (1, 2**31 - 1), "sender": (0, 2**31 - 1), "serial": (1, 2**62 - 1), "tag": (0, 21)}


# Section 2: one encoding.


def pack(value: int | bytes | str | Sequence[Any]) -> bytes:
    """Msgpack in the shortest form."""
    if isinstance(value, int):
        if value < 128:
            return bytes((value,))
        width = next(i for i in range(4) if value < 1 << 8 * 2**i)
        return bytes((0xCC + width,)) + value.to_bytes(2**width, "big")
    if isinstance(value, bytes):
        width = next(i for i in range(3) if len(value) < 1 << 8 * 2**i)
        return bytes((0xC4 + width,)) + len(value).to_bytes(2**width, "big") + value
    if isinstance(value, str):
        return bytes((0xA0 + len(value),)) + value.encode()  # the specification's only text is shorter than 32 bytes
    count = len(value)
    head = bytes((0x90 + count,)) if count < 16 else struct.pack(">BH" if count < 65536 else ">BI", 0xDC, count)
    if count >= 65536:
        head = b"\xdd" + head[1:]
    return head + b"".join(map(pack, value))


class Refused(Exception):
    """Bytes that are not the canonical encoding of what is expected."""


class Reader:
    """Reads canonical msgpack by a schema and nothing else."""

    def __init__(self, data: bytes, suite: int, removable: int) -> None:
        self.data, self.at = data, 0
        self.sizes = SIZES[suite] | {
            "sealed": SIZES[suite]["sealed"] + 36 * removable,
            "commitments": 64 if removable else 32,
        }

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) < count:
            raise Refused("too short")
        self.at += count
        return piece

    def number(self, name: str) -> int:
        (head,) = self.take(1)
        value = head
        if head >= 128:
            if not 0xCC <= head <= 0xCF:
                raise Refused(f"{head:#x} is not an unsigned integer")
            value = int.from_bytes(self.take(1 << head - 0xCC), "big")
            if pack(value)[0] != head:
                raise Refused("not the shortest form")
        low, high = RANGES[name]
        if not low <= value <= high:
            raise Refused(f"{name} out of range")
        return value

    def blob(self, size: int | None) -> bytes:
        (head,) = self.take(1)
        if not 0xC4 <= head <= 0xC6:
            raise Refused(f"{head:#x} is not a byte string")
        value = self.take(int.from_bytes(self.take(1 << head - 0xC4), "big"))
        if pack(value)[0] != head or size not in (None, len(value)):
            raise Refused("not the shortest form, or another length")
        return value

    def count(self) -> int:
        (head,) = self.take(1)
        if 0x90 <= head <= 0x9F:
            return head - 0x90
        if head not in (0xDC, 0xDD):
            raise Refused(f"{head:#x} is not an array")
        count = int.from_bytes(self.take(2 if head == 0xDC else 4), "big")
        if count < 16 or (head == 0xDD and count < 65536) or count > len(self.data):
            raise Refused("not the shortest form, or impossibly long")
        return count

    def value(self, schema: Any) -> Any:
        if isinstance(schema, int):
            return self.blob(schema)
        if isinstance(schema, str) and schema in self.sizes:
            return self.blob(self.sizes[schema])
        if schema == "bytes":
            return self.blob(None)
        if isinstance(schema, str):
            return self.number(schema)
        if isinstance(schema, list):
            return [self.value(schema[0]) for _ in range(self.count())]
        if self.count() != len(schema):
            raise Refused("another number of fields")
        return [self.value(one) for one in schema]


def header(suite: int) -> bytes:
    return b"SAGG\x01" + bytes((suite,))


def encode(kind: str, context: bytes, sender: int, *fields: Any, suite: int) -> bytes:
    """Header and body."""
    return header(suite) + pack([MESSAGES[kind][0], context, sender, *fields])


def decode(kind: str, data: bytes, *, suite: int = 1, removable: int = 0) -> list[Any]:
    """Context, sender, fields; refuses whatever section 4 does not allow."""
    if data[:6] != header(suite):
        raise Refused("another header")
    reader = Reader(data[6:], suite, removable)
    tag, fields = MESSAGES[kind]
    values: list[Any] = reader.value(("tag", 32, "sender", *fields))
    if values[0] != tag or reader.at != len(reader.data):
        raise Refused("another message, or more after it")
    return values[1:]


# Section 3: digests. Section 5: primitives.


def hkdf(secret: bytes, context: bytes, usage: str, *ids: int) -> bytes:
    """One block of HKDF-SHA256."""
    info = b"secagg/v1/pairwise/" + usage.encode() + b"".join(struct.pack(">I", i) for i in ids)
    return hmac.digest(hmac.digest(context, secret, sha256), info + b"\x01", sha256)


def key_pair(secret: bytes, suite: int) -> tuple[bytes, bytes]:
    """Section 5.1: the X25519 private key and, in suite 2, the ML-KEM seed."""
    if suite == 1:
        return secret, b""
    inner = hmac.digest(bytes(32), secret, sha256)
    first = hmac.digest(inner, b"secagg/v1/key/ml-kem-768\x01", sha256)
    second = hmac.digest(inner, first + b"secagg/v1/key/ml-kem-768\x02", sha256)
    return hmac.digest(inner, b"secagg/v1/key/x25519\x01", sha256), first + second


def public_key(secret: bytes, suite: int) -> bytes:
    point, seed = key_pair(secret, suite)
    kem = MLKEM768PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw() if seed else b""
    return public_of(point) + kem


def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def mask(seed: bytes, words: int, word_bytes: int) -> list[int]:
    """AES-256-CTR from counter block 0, as little-endian words."""
    size = words * word_bytes
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(size))
    return [int.from_bytes(stream[i : i + word_bytes], "little") for i in range(0, size, word_bytes)]


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    layer = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
    while len(layer) > 1:
        pairs = [layer[i : i + 2] for i in range(0, len(layer), 2)]
        layer = [sha256(b"\x01" + b"".join(pair)).digest() if len(pair) == 2 else pair[0] for pair in pairs]
    return layer[0]


def holders_of(members: Sequence[int], degree: int, context: bytes) -> dict[int, list[int]]:
    """Section 3.6."""
    if degree >= len(members) - 1:
        return {client: list(members) for client in members}
    stream = shake_256(b"secagg/v1/pairwise/graph" + context).digest(16 * len(members))
    ring = sorted(members, key=lambda client: (stream[(i := 16 * members.index(client)) : i + 16], client))
    reach = range(-(degree // 2), degree // 2 + 1)
    return {c: sorted(ring[(ring.index(c) + step) % len(ring)] for step in reach) for c in members}


def digits_of(secret: bytes) -> list[int]:
    number = int.from_bytes(secret, "little")
    return [number >> 15 * i & 0x7FFF for i in range(18)]


def secret_of(digits: Iterable[int]) -> bytes:
    return sum(digit << 15 * i for i, digit in enumerate(digits)).to_bytes(32, "little")


def elements(share: bytes) -> list[int]:
    values = list(struct.unpack(f"<{len(share) // 2}H", share))
    if any(value >= P for value in values):
        raise Refused("not in the field")
    return values


def interpolate(points: Mapping[int, int]) -> int:
    """The value at 0."""
    total = 0
    for x, y in points.items():
        others = [other for other in points if other != x]
        total += y * prod(others) * pow(prod(other - x for other in others), -1, P)
    return total % P


def sign(identity: bytes, kind: str, covered: bytes) -> bytes:
    text = b"secagg/v1/pairwise/signature/" + kind.encode() + sha256(covered).digest()
    return Ed25519PrivateKey.from_private_bytes(identity).sign(text)


def check_signature(public: bytes, kind: str, covered: bytes, signature: bytes) -> None:
    text = b"secagg/v1/pairwise/signature/" + kind.encode() + sha256(covered).digest()
    Ed25519PublicKey.from_public_bytes(public).verify(signature, text)


def required_threshold(holders: int, corrupt: int) -> int:
    return max(min(3, holders), (holders + corrupt) // 2 + 1)


@dataclass
class Lanes:
    """Section 5.6."""

    bits: int
    length: int

    @property
    def word_bytes(self) -> int:
        return {16: 2, 32: 4}.get(self.bits, 8)

    @property
    def words(self) -> int:
        return self.length if self.word_bytes < 8 else -(-self.length // (64 // self.bits))

    @property
    def modulus(self) -> int:
        return 1 << 8 * self.word_bytes

    def pack(self, vector: Sequence[int]) -> list[int]:
        if self.word_bytes < 8:
            return list(vector)
        words = [0] * self.words
        for i, entry in enumerate(vector):
            words[i % self.words] |= entry << self.bits * (i // self.words)
        return words

    def unpack(self, words: Sequence[int]) -> list[int]:
        if self.word_bytes < 8:
            return list(words)
        mask_ = (1 << self.bits) - 1
        return [words[i % self.words] >> self.bits * (i // self.words) & mask_ for i in range(self.length)]

    def to_bytes(self, words: Sequence[int]) -> bytes:
        return b"".join(word.to_bytes(self.word_bytes, "little") for word in words)

    def from_bytes(self, data: bytes) -> list[int]:
        w = self.word_bytes
        return [int.from_bytes(data[i : i + w], "little") for i in range(0, len(data), w)]


# The round.


@dataclass
class Secrets:
    """What one client draws: section 5.4 says how coefficients are drawn, the vectors' README in which order."""

    channel_key: bytes
    mask_key: bytes
    self_seed: bytes
    fresh: bytes
    first_link: bytes  # r_1, empty without removable components
    coefficients: list[list[int]]  # [t - 1][18 (2 + T)]: 18 digits of the mask key, of the self seed, of each link


def draw(data: bytes, threshold: int, removable: int) -> Secrets:
    """Reads a client's random bytes; all of them are used."""
    channel_key, mask_key, fresh, self_seed = (data[32 * i : 32 * i + 32] for i in range(4))
    drawn, width = 160 if removable else 128, 18 * (2 + removable)
    accepted = [value for (value,) in struct.iter_unpack("<H", data[drawn:]) if value < P]
    rows = [accepted[width * i : width * (i + 1)] for i in range(threshold - 1)]
    if accepted and len(accepted) != width * (threshold - 1):
        raise ValueError("random bytes are left, or missing")
    return Secrets(channel_key, mask_key, self_seed, fresh, data[128:drawn], rows)


@dataclass
class HonestRound:
    """All parties of a script at once."""

    script: Mapping[str, Any]
    messages: list[tuple[int, int, str, bytes]] = field(default_factory=list)
    derived: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, dict[str, bytes]] = field(default_factory=dict)
    survivors: list[int] = field(default_factory=list)
    result: list[int] = field(default_factory=list)
    transcript: bytes = b""
    removed: dict[int, list[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        script = self.script
        config = [bytes.fromhex(v) if isinstance(v := script["config"][name], str) else v for name in CONFIG_FIELDS]
        self.removable = script["config"].get("removable", 0)
        if self.removable:
            config.append(self.removable)
        self.suite = script["config"]["suite"]
        self.threshold, self.degree = script["config"]["threshold"], script["config"]["degree"]
        self.lanes = Lanes(script["config"]["modulus_bits"], script["config"]["length"])
        self.identities = {int(client): bytes.fromhex(key) for client, key in script["identities"].items()}
        self.roster = {
            client: Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
            for client, key in sorted(self.identities.items())
        }
        self.roster_digest = sha256(b"secagg/v1/roster" + pack([[*pin] for pin in self.roster.items()])).digest()
        config_digest = sha256(b"secagg/v1/pairwise/config" + pack(config)).digest()
        self.context0 = sha256(b"secagg/v1/pairwise/context0" + config_digest + self.roster_digest).digest()
        self.context = self.context0  # until the keys are known
        self.derived = {"config": config_digest, "roster": self.roster_digest, "context0": self.context0}
        self.secrets = {
            int(c): draw(bytes.fromhex(data), self.threshold, self.removable)
            for c, data in script["rand"].items()
            if data
        }

    def speaks(self, client: int, number: int) -> bool:
        """Whether the client still sends its message of that number, from 0."""
        return number < int(self.script["silent"].get(str(client), 5))

    def play(self) -> HonestRound:
        self.advertise_keys()
        self.share_keys()
        self.send_masked()
        self.agree_on_survivors()
        self.unmask()
        return self

    def frame(self, kind: str, sender: int, *fields: Any) -> bytes:
        return encode(kind, self.context, sender, *fields, suite=self.suite)

    def send(self, sender: int, receiver: int, kind: str, frame: bytes) -> None:
        self.messages.append((sender, receiver, kind, frame))

    def send_signed(self, sender: int, kind: str, covered: bytes) -> None:
        self.send(sender, 0, kind, covered + sign(self.identities[sender], kind, covered))

    def advertise_keys(self) -> None:
        bundles = {}
        for client, secrets in sorted(self.secrets.items()):
            serial = self.script["serials"][str(client)]
            keys = (public_key(secrets.channel_key, self.suite), public_key(secrets.mask_key, self.suite))
            said = [client, serial, secrets.fresh, *keys]
            covered = b"secagg/v1/pairwise/key-bundle" + pack([1, self.suite, "pairwise", self.roster_digest, *said])
            bundles[client] = [*said, sign(self.identities[client], "KeyBundle", covered)]
            self.send(
                client,
                0,
                "AdvertiseKeys",
                self.frame("AdvertiseKeys", client, bundles[client]),
            )
        for client in bundles:
            frame = self.frame("KeyBundles", 0, list(bundles.values()))
            self.send(0, client, "KeyBundles", frame)
        root = merkle_root([pack(bundle) for bundle in bundles.values()])
        self.bundles = bundles
        self.context = sha256(b"secagg/v1/pairwise/context" + self.context0 + root).digest()
        self.holders = holders_of(list(bundles), self.degree, self.context)
        self.derived |= {"bundle_root": root, "context": self.context, "holders": self.holders}

    def neighbours(self, client: int, among: Iterable[int]) -> list[int]:
        there = set(among)
        return [peer for peer in self.holders[client] if peer != client and peer in there]

    def agreed(self, secret: bytes, public: bytes) -> bytes:
        return agree(key_pair(secret, self.suite)[0], public[:32])

    def encapsulated(self, sender: int, receiver: int, which: int) -> tuple[bytes, bytes]:
        """KEM secret and ciphertext: 0 for the half, 1 for the channel; empty in suite 1."""
        if self.suite == 1:
            return b"", b""
        at = 2 * self.neighbours(sender, self.bundles).index(receiver) + which
        message = bytes.fromhex(self.script["kem"][str(sender)])[32 * at : 32 * at + 32]
        return encapsulate(self.bundles[receiver][4 - which][32:], message)

    def channel(self, sender: int, receiver: int) -> bytes:
        secret = self.agreed(self.secrets[sender].channel_key, self.bundles[receiver][3])
        secret += self.encapsulated(sender, receiver, 1)[0]
        return hkdf(secret, self.context, "channel", sender, receiver)

    def half(self, mask_key: bytes, client: int, peer: int) -> bytes:
        return b"" if self.suite == 1 else hkdf(mask_key, self.context, "pair-half", client, peer)

    def sealed_half(self, sender: int, receiver: int) -> bytes:
        if self.suite == 1:
            return b""
        secret, ciphertext = self.encapsulated(sender, receiver, 0)
        cipher = AESGCM(hkdf(secret, self.context, "half-seal", sender, receiver))
        half = self.half(self.secrets[sender].mask_key, sender, receiver)
        commitment = hkdf(half, self.context, "pair-half-commitment", sender, receiver)
        return commitment + ciphertext + cipher.encrypt(bytes(12), half, self.context)

    def opened_half(self, mask_key: bytes, sender: int, receiver: int) -> bytes:
        """What the owner of a mask key, or the server that reconstructed it, reads in what a peer sent to it."""
        if self.suite == 1:
            return b""
        data = self.sealed[sender, receiver][-1136:]  # behind the commitment, whatever is sealed before it
        secret = MLKEM768PrivateKey.from_seed_bytes(key_pair(mask_key, 2)[1]).decapsulate(data[:1088])
        cipher = AESGCM(hkdf(secret, self.context, "half-seal", sender, receiver))
        return cipher.decrypt(bytes(12), data[1088:], self.context)

    def pair_mask(self, mask_key: bytes, client: int, peer: int) -> bytes:
        secret = self.agreed(mask_key, self.bundles[peer][4])
        halves = {client: self.half(mask_key, client, peer), peer: self.opened_half(mask_key, peer, client)}
        low, high = sorted(halves)
        return hkdf(secret + halves[low] + halves[high], self.context, "pair-mask", low, high)

    def links(self, client: int, link: bytes, number: int) -> list[bytes]:
        """r_number ... r_{T+1} of a chain."""
        chain = [link]
        for _ in range(number, self.removable + 1):
            chain.append(hkdf(chain[-1], self.context, "removable-next", client))
        return chain

    def component_seeds(self, client: int, chain: list[bytes]) -> list[bytes]:
        return [hkdf(link, self.context, "removable-seed", client) for link in chain[:-1]]

    def shares_of(self, client: int) -> dict[int, bytes]:
        """Holder -> its share of the mask key, of the self seed, and of each link of the chain."""
        secrets = self.secrets[client]
        constants = digits_of(secrets.mask_key) + digits_of(secrets.self_seed)
        if self.removable:
            for link in self.links(client, secrets.first_link, 1)[:-1]:
                constants += digits_of(link)
        shares = {}
        for slot, holder in enumerate(self.holders[client]):
            x = slot + 1
            values = [
                (constant + sum(row[i] * x ** (j + 1) for j, row in enumerate(secrets.coefficients))) % P
                for i, constant in enumerate(constants)
            ]
            shares[holder] = struct.pack(f"<{len(values)}H", *values)
        return shares

    def share_keys(self) -> None:
        self.sealed = sealed = {}
        self.cohort = [client for client in self.bundles if self.speaks(client, 1)]
        self.shares = {client: self.shares_of(client) for client in self.cohort}
        self.commitments = {}
        for client in self.cohort:
            peers = self.neighbours(client, self.bundles)
            for peer in peers:
                cipher = AESGCM(self.channel(client, peer))
                half, ciphertext = self.sealed_half(client, peer), self.encapsulated(client, peer, 1)[1]
                associated = self.context + ciphertext + half
                shares = cipher.encrypt(bytes(12), self.shares[client][peer], associated)
                sealed[client, peer] = ciphertext + shares + half
            commitment = hkdf(self.secrets[client].self_seed, self.context, "self-seed-commitment", client)
            self.commitments[client] = commitment
            if self.removable:
                commitment += self.links(client, self.secrets[client].first_link, 1)[-1]
            boxes = [sealed[client, peer] for peer in peers]
            self.send_signed(client, "ShareKeys", self.frame("ShareKeys", client, commitment, boxes))
        for client in self.cohort:
            boxes = [sealed[peer, client] for peer in self.neighbours(client, self.cohort)]
            self.send(0, client, "SealedShares", self.frame("SealedShares", 0, self.cohort, boxes))
        everybody = sorted(self.bundles)
        self.keys = {
            "channel": {f"{a},{b}": self.channel(a, b) for a in everybody for b in self.neighbours(a, everybody)},
            "pair_mask": {
                f"{a},{b}": self.pair_mask(self.secrets[a].mask_key, a, b)
                for a in everybody
                for b in self.neighbours(a, everybody)
                if a < b
            },
            "self_mask": {str(c): hkdf(self.secrets[c].self_seed, self.context, "self-mask", c) for c in everybody},
            "self_seed_commitment": {
                str(c): hkdf(self.secrets[c].self_seed, self.context, "self-seed-commitment", c) for c in everybody
            },
        }
        if self.removable:
            self.keys["removable_seed"] = {
                f"{c},{k}": seed
                for c in everybody
                for k, seed in enumerate(self.component_seeds(c, self.links(c, self.secrets[c].first_link, 1)), 1)
            }
        self.cohort_digest = sha256(b"secagg/v1/pairwise/cohort" + self.context + pack(self.cohort)).digest()
        self.derived["cohort"] = self.cohort_digest

    def expand(self, seed: bytes) -> list[int]:
        return mask(seed, self.lanes.words, self.lanes.word_bytes)

    def send_masked(self) -> None:
        self.survivors = [client for client in self.cohort if self.speaks(client, 2)]
        self.total = [0] * self.lanes.words
        for client in self.survivors:
            secrets = self.secrets[client]
            masks = [(1, hkdf(secrets.self_seed, self.context, "self-mask", client))]
            for peer in self.neighbours(client, self.cohort):
                masks.append((1 if peer > client else -1, self.pair_mask(secrets.mask_key, client, peer)))
            words = self.lanes.pack(self.script["vectors"][str(client)])
            for factor, seed in masks:
                words = [w + factor * m for w, m in zip(words, self.expand(seed), strict=True)]
            tail = self.lanes.to_bytes([w % self.lanes.modulus for w in words])
            self.send_signed(
                client,
                "MaskedInput",
                self.frame("MaskedInput", client, self.cohort_digest) + tail,
            )
            received = self.lanes.from_bytes(tail)
            self.total = [(a + b) % self.lanes.modulus for a, b in zip(self.total, received, strict=True)]
        for client in self.survivors:
            self.send(0, client, "SurvivorList", self.frame("SurvivorList", 0, self.survivors))
        lists = pack([self.cohort, self.survivors])
        self.view = sha256(b"secagg/v1/pairwise/view" + self.context + lists).digest()
        self.derived["view"] = self.view

    def agree_on_survivors(self) -> None:
        signatures = {}
        for client in self.survivors:
            if self.speaks(client, 3):
                self.send_signed(
                    client,
                    "ConsistencyCheck",
                    self.frame("ConsistencyCheck", client, self.view),
                )
                signatures[client] = self.messages[-1][3][-64:]
        self.asked = []
        requests = []
        for client in signatures:
            signers = [holder for holder in self.holders[client] if holder in signatures]
            if len(signers) >= self.threshold:
                self.asked.append(client)
                signed = [signatures[signer] for signer in signers]
                requests.append((client, self.frame("SurvivorSignatures", 0, signers, signed)))
        self.fails = any(len({*self.holders[c]} & {*self.asked}) < self.threshold for c in self.cohort)
        if not self.fails:
            for client, frame in requests:
                self.send(0, client, "SurvivorSignatures", frame)

    def unmask(self) -> None:
        if self.fails:
            return
        received: dict[int, dict[int, bytes]] = {}
        links: dict[int, dict[int, bytes]] = {}
        number = len(self.script["vectors"]) - len(self.survivors) + 1  # of the first component that must go
        for holder in self.asked:
            if not self.speaks(holder, 4):
                continue
            owners = [client for client in self.holders[holder] if client in self.cohort]
            said = b"".join(
                self.shares[owner][holder][36:72] if owner in self.survivors else self.shares[owner][holder][:36]
                for owner in owners
            )
            if number <= self.removable:
                place = 36 * (number + 1)
                alive = [owner for owner in owners if owner in self.survivors]
                links[holder] = {owner: self.shares[owner][holder][place : place + 36] for owner in alive}
                said += b"".join(links[holder].values())
            self.send_signed(holder, "Unmask", self.frame("Unmask", holder, said, []))
            received[holder] = {owner: said[36 * i : 36 * i + 36] for i, owner in enumerate(owners)}
        total = self.total
        for owner in self.cohort:
            for factor, seed in self.masks_left(owner, received):
                total = [(a + factor * b) % self.lanes.modulus for a, b in zip(total, self.expand(seed), strict=True)]
        if number <= self.removable:
            for owner in self.survivors:
                chain = self.links(owner, self.reconstructed(owner, links), number)
                if chain[-1] != self.links(owner, self.secrets[owner].first_link, 1)[-1]:
                    raise ValueError(f"the chain of {owner} is another one")
                self.removed[owner] = self.component_seeds(owner, chain)
        self.result = self.lanes.unpack(total)
        vector = b"".join(entry.to_bytes(4, "little") for entry in self.result)
        self.transcript = sha256(b"secagg/v1/pairwise/transcript" + self.view + sha256(vector).digest()).digest()

    def reconstructed(self, owner: int, received: Mapping[int, Mapping[int, bytes]]) -> bytes:
        """A secret from the first t shares of it."""
        slots = [(slot, h) for slot, h in enumerate(self.holders[owner]) if h in received][: self.threshold]
        shares = {slot + 1: elements(received[holder][owner]) for slot, holder in slots}
        return secret_of(interpolate({x: share[i] for x, share in shares.items()}) for i in range(18))

    def masks_left(self, owner: int, received: Mapping[int, Mapping[int, bytes]]) -> list[tuple[int, bytes]]:
        """The masks that a cohort member leaves in the sum of the survivors, with the sign that removes them."""
        secret = self.reconstructed(owner, received)
        if owner in self.survivors:
            if hkdf(secret, self.context, "self-seed-commitment", owner) != self.commitments[owner]:
                raise ValueError(f"the self seed of {owner} is another one")
            return [(-1, hkdf(secret, self.context, "self-mask", owner))]
        if public_key(secret, self.suite) != self.bundles[owner][4]:
            raise ValueError(f"the mask key of {owner} is another one")
        return [
            (-1 if owner > peer else 1, self.pair_mask(secret, owner, peer))
            for peer in self.neighbours(owner, self.survivors)
        ]

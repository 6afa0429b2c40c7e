"""The one-shot protocol again, from `protocols/SPEC.md` alone: nothing of the library is imported.

As `from_spec`, whose msgpack, HKDF and key pairs it uses: Python integers and the primitives of `cryptography`. All
parties of a script of `tests/vectors/one_shot` are played, and the server opens the sum with what members answer.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import isqrt, prod
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.protocols.ml_kem import encapsulate

from . import from_spec
from .from_spec import P, Reader, Refused, agree, key_pair, pack, public_key

N, Q, ROWS, CANARIES = 2048, 1 << 32, 8, 64
CONFIG_FIELDS = (
    "round_id", "cohort", "committee", "threshold", "min_survivors", "corrupt_holders", "length", "modulus_bits",
    "model", "binding", "suite",
)  # fmt: skip
BUNDLE = ("id", "serial", 32, "key", 64)
CONTRIBUTION = (32, 32, [32], "bytes")  # after context and sender
SEALED = (("tag", 32, "sender", *CONTRIBUTION), 64, "share")
# Section 12: tag, then the fields after context and sender.
MESSAGES: dict[str, tuple[int, tuple[Any, ...]]] = {
    "MemberKeys": (16, (BUNDLE,)),
    "Committee": (17, ([BUNDLE],)),
    "Contribution": (18, CONTRIBUTION),
    "UnmaskRequest": (19, ([BUNDLE], [SEALED])),
    "PartialSum": (20, (32, 4096, [BUNDLE])),
    "Complaint": (21, (32, [("id", 32)])),
}


class OneShotReader(Reader):
    """Tags up to 21, and shares of two sizes."""

    def __init__(self, data: bytes, suite: int) -> None:
        super().__init__(data, suite, 0)
        self.shares = [size + 16 + (1088 if suite == 2 else 0) for size in (32, 2 * (N + ROWS))]

    def value(self, schema: Any) -> Any:
        if schema == "share":
            share = self.blob(None)
            if len(share) not in self.shares:
                raise Refused("a share of another size")
            return share
        return super().value(schema)


def encode(kind: str, context: bytes, sender: int, *fields: Any, suite: int) -> bytes:
    """Header and body."""
    return from_spec.header(suite) + pack([MESSAGES[kind][0], context, sender, *fields])


def decode(kind: str, data: bytes, *, suite: int = 1) -> list[Any]:
    """Context, sender, fields; refuses whatever section 12 does not allow."""
    if data[:6] != from_spec.header(suite):
        raise Refused("another header")
    reader = OneShotReader(data[6:], suite)
    tag, fields = MESSAGES[kind]
    values: list[Any] = reader.value(("tag", 32, "sender", *fields))
    if values[0] != tag or reader.at != len(reader.data):
        raise Refused("another message, or more after it")
    if kind == "PartialSum" and len(values[-1]) > 1:
        raise Refused("two bundles")
    if kind == "Complaint" and not values[-1]:
        raise Refused("about nobody")
    if kind == "UnmaskRequest" and any(one[0][0] != 18 for one in values[-1]):
        raise Refused("no contribution")
    return values[1:]


def least_threshold(members: int, corrupt: int) -> int:
    """Section 11.1."""
    return next(t for t in range(3, members + 2) if 3 * t > 2 * members + corrupt)


def label(name: str, *parts: bytes) -> bytes:
    return sha256(b"secagg/v1/one_shot/" + name.encode() + b"".join(parts)).digest()


def text(kind: str, covered: bytes) -> bytes:
    """What a signature is over."""
    return b"secagg/v1/pairwise/signature/one_shot/" + kind.encode() + sha256(covered).digest()


def sign(identity: bytes, kind: str, covered: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(identity).sign(text(kind, covered))


def check_signature(public: bytes, kind: str, covered: bytes, signature: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(public).verify(signature, text(kind, covered))


def channel(secret: bytes, context: bytes, client: int, member: int) -> bytes:
    info = b"secagg/v1/one_shot/channel" + struct.pack(">II", client, member)
    return hmac.digest(hmac.digest(context, secret, sha256), info + b"\x01", sha256)


# Section 13.


def stream(seed: bytes, size: int) -> bytes:
    return Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def uniform(seed: bytes, count: int) -> list[int]:
    values = [value for (value,) in struct.iter_unpack("<H", stream(seed, 2 * (count + 64))) if value < P]
    return values[:count]


def sample(count: int, seed: bytes) -> list[int]:
    """Section 13.1."""
    samples, data = [], stream(seed, 10 * count + 16)
    for first in range(0, count, 32768):
        size = min(32768, count - first)
        piece = data[10 * first : 10 * first + 10 * size]
        wide, narrow = piece[: 8 * size], piece[8 * size :]
        for i in range(size):
            ones = int.from_bytes(wide[8 * i : 8 * i + 8], "little").bit_count()
            samples.append(ones + int.from_bytes(narrow[2 * i : 2 * i + 2], "little").bit_count() - 40)
    return samples


def product(a: Sequence[int], s: Sequence[int]) -> list[int]:
    """a s modulo x^N + 1 and q, through one product of large integers: 8 bytes hold every coefficient."""
    positive = [max(one, 0) for one in s], [max(-one, 0) for one in s]
    whole = int.from_bytes(b"".join(one.to_bytes(8, "little") for one in a), "little")
    result = [0] * N
    for sign_of, factor in zip((1, -1), positive, strict=True):
        packed = int.from_bytes(b"".join(one.to_bytes(8, "little") for one in factor), "little")
        data = (whole * packed).to_bytes(16 * N, "little")
        values = [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(2 * N)]
        result = [(r + sign_of * (low - high)) % Q for r, low, high in zip(result, values[:N], values[N:], strict=True)]
    return result


def mask_of(seed: bytes, s: Sequence[int], count: int) -> list[int]:
    """Section 13.2: A s, as many words as are needed."""
    blocks = -(-count // N)
    data = stream(seed, 8192 * blocks)
    words: list[int] = []
    for j in range(blocks):
        halves = [value for (value,) in struct.iter_unpack("<h", data[8192 * j : 8192 * j + 8192])]
        words += product([(low + (high << 16)) % Q for low, high in zip(halves[:N], halves[N:], strict=True)], s)
    return words[:count]


def bound(clients: int) -> int:
    return min(40 * clients, isqrt(2000 * clients) + 1)


def weights(points: Sequence[int], x: int) -> list[int]:
    """Lagrange: what takes values at the points to the value at x."""
    return [
        prod(x - other for other in points if other != one)
        * pow(prod(one - other for other in points if other != one), -1, P)
        % P
        for one in points
    ]


def interpolate(points: Sequence[int], rows: Sequence[Sequence[int]], x: int) -> list[int]:
    factors = weights(points, x)
    return [sum(f * value for f, value in zip(factors, column, strict=True)) % P for column in zip(*rows, strict=True)]


def evaluate(rho: Sequence[int], share: Sequence[int]) -> list[int]:
    """Section 13.5: z of one share."""
    return [
        (sum(r * f for r, f in zip(rho[N * i : N * i + N], share[:N], strict=True)) + share[N + i]) % P
        for i in range(ROWS)
    ]


def elements(data: bytes) -> list[int]:
    values = [value for (value,) in struct.iter_unpack("<H", data)]
    if any(value >= P for value in values):
        raise Refused("an element outside the field")
    return values


def to_bytes(values: Iterable[int]) -> bytes:
    return b"".join(value.to_bytes(2, "little") for value in values)


@dataclass
class HonestRound:
    """All parties of a script at once. A client that `garbles` seals zeros to these members."""

    script: Mapping[str, Any]
    garbles: Mapping[int, Sequence[int]] = field(default_factory=dict)
    messages: list[tuple[int, int, str, bytes]] = field(default_factory=list)
    derived: dict[str, Any] = field(default_factory=dict)
    survivors: list[int] = field(default_factory=list)
    result: list[int] = field(default_factory=list)
    transcript: bytes = b""
    pairs: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        script, config = self.script, self.script["config"]
        values = [bytes.fromhex(v) if isinstance(v := config[name], str) else v for name in CONFIG_FIELDS]
        self.suite, self.threshold, self.length = config["suite"], config["threshold"], config["length"]
        self.tau = 32 - config["modulus_bits"]
        self.identities = {int(party): bytes.fromhex(key) for party, key in script["identities"].items()}
        self.roster = {
            party: Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
            for party, key in sorted(self.identities.items())
        }
        roster = sha256(b"secagg/v1/roster" + pack([[*pin] for pin in self.roster.items()])).digest()
        digest = label("config", pack(values))
        self.committee = config["committee"]
        self.context0 = label("context0", digest, roster)
        self.context = b""
        self.roster_digest = roster
        self.derived = {
            "config": digest,
            "roster": roster,
            "committee": label("committee", pack([[m, self.roster[m]] for m in self.committee])),
            "context0": self.context0,
        }
        self.ephemeral: dict[int, bytes] = {}
        self.signed: dict[int, tuple[bytes, bytes, list[bytes]]] = {}  # client -> body and header, signature, shares

    def speaks(self, group: str, party: int, number: int) -> bool:
        return number < int(self.script["silent"][group].get(str(party), 9))

    def play(self) -> HonestRound:
        self.advertise_keys()
        self.contribute()
        self.answer()
        return self

    def bundle(self, member: int, serial: int, secret: bytes, fresh: bytes) -> list[Any]:
        said = [member, serial, fresh, public_key(secret, self.suite)]
        covered = b"secagg/v1/one_shot/member-bundle" + pack([1, self.suite, "one_shot", self.roster_digest, *said])
        return [*said, sign(self.identities[member], "MemberBundle", covered)]

    def advertise_keys(self) -> None:
        self.secrets, self.bundles = {}, {}
        for member, own in sorted((int(m), own) for m, own in self.script["members"].items()):
            rand = bytes.fromhex(own["rand"])
            self.secrets[member] = rand[:32]
            if self.speaks("members", member, 0):
                self.bundles[member] = self.bundle(member, own["serial"], rand[:32], rand[32:])
                frame = encode("MemberKeys", self.context0, member, self.bundles[member], suite=self.suite)
                self.messages.append((member, 0, "MemberKeys", frame))
        shown = encode("Committee", self.context0, 0, list(self.bundles.values()), suite=self.suite)
        for client in sorted(map(int, self.script["clients"])):
            self.messages.append((0, client, "Committee", shown))
        self.points = [slot + 1 for slot, member in enumerate(self.committee) if member in self.bundles]
        self.context = label("context", self.context0, sha256(pack(list(self.bundles.values()))).digest())
        self.matrix = label("matrix", self.context)
        self.derived |= {"context": self.context, "matrix": self.matrix, "challenge": {}}

    def shares(self, key: Sequence[int], rand: bytes) -> tuple[list[bytes], list[list[int]]]:
        """Section 13.4: what travels, and what it stands for."""
        t = self.threshold
        seeds = [rand[32 * i : 32 * i + 32] for i in range(t - 1)]
        secret = [one % P for one in key] + uniform(rand[32 * (t - 1) :], ROWS)
        known = [secret, *(uniform(seed, N + ROWS) for seed in seeds)]
        others = [interpolate([0, *self.points[: t - 1]], known, x) for x in self.points[t - 1 :]]
        return seeds + [to_bytes(one) for one in others], known[1:] + others

    def sealed(self, client: int, kem: bytes, plain: Sequence[bytes], words: bytes) -> list[bytes]:
        """Section 13.6."""
        shares = []
        for i, (member, share) in enumerate(zip(self.bundles, plain, strict=True)):
            public = self.bundles[member][3]
            secret, ciphertext = encapsulate(public[32:], kem[32 * i : 32 * i + 32]) if self.suite == 2 else (b"", b"")
            key = channel(agree(self.ephemeral[client], public[:32]) + secret, self.context, client, member)
            associated = self.belongs(client, member, words) + ciphertext
            box = ciphertext + AESGCM(key).encrypt(bytes(12), share, associated)
            shares.append(bytes(len(box)) if member in self.garbles.get(client, ()) else box)
        return shares

    def belongs(self, client: int, member: int, words: bytes) -> bytes:
        return pack([self.context, client, member, public_key(self.ephemeral[client], 1), words])

    def contribute(self) -> None:
        self.total = [0] * (self.length + CANARIES)
        for client in sorted(map(int, self.script["clients"])):
            if not self.speaks("clients", client, 0):
                continue
            own = self.script["clients"][str(client)]
            rand = bytes.fromhex(own["rand"])
            self.ephemeral[client] = rand[:32]
            key, errors = sample(N, rand[32:64]), sample(len(self.total), rand[64:96])
            entries = [value << self.tau for value in own["vector"]] + [0] * CANARIES
            masks = mask_of(self.matrix, key, len(entries))
            words = [(x + e + a) % Q for x, e, a in zip(entries, errors, masks, strict=True)]
            tail = b"".join(word.to_bytes(4, "little") for word in words)
            digest, public = sha256(tail).digest(), public_key(rand[:32], 1)
            plain, shares = self.shares(key, rand[96:])
            sealed = self.sealed(client, bytes.fromhex(own.get("kem", "")), plain, digest)
            digests = [sha256(one).digest() for one in sealed]
            challenge = label("challenge", self.context, pack([client, public, digest, digests]))
            rho = uniform(challenge, ROWS * N)
            proof = b"".join(to_bytes(evaluate(rho, share)) for share in shares[: self.threshold])
            covered = encode("Contribution", self.context, client, public, digest, digests, proof, suite=self.suite)
            signature = sign(self.identities[client], "Contribution", covered)
            self.messages.append((client, 0, "Contribution", covered + signature + b"".join(sealed) + tail))
            self.signed[client] = (covered, signature, sealed)
            self.total = [(a + b) % Q for a, b in zip(self.total, words, strict=True)]
            self.derived["challenge"][str(client)] = challenge
        self.survivors = list(self.signed)
        self.view = label("view", self.context, pack(self.survivors))
        self.derived["view"] = self.view
        for i, member in enumerate(self.bundles):
            listed = [
                [[18, *decode("Contribution", covered, suite=self.suite)], signature, sealed[i]]
                for covered, signature, sealed in self.signed.values()
            ]
            frame = encode("UnmaskRequest", self.context0, 0, list(self.bundles.values()), listed, suite=self.suite)
            self.messages.append((0, member, "UnmaskRequest", frame))

    def opened(self, client: int, i: int, member: int) -> list[int] | None:
        """What the member reads in its share, if it is good."""
        covered, _, sealed = self.signed[client]
        _, _, public, words, digests, proof = decode("Contribution", covered, suite=self.suite)
        private, seed = key_pair(self.secrets[member], self.suite)
        ciphertext, box = (sealed[i][:1088], sealed[i][1088:]) if self.suite == 2 else (b"", sealed[i])
        secret = MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(ciphertext) if seed else b""
        key = channel(agree(private, public) + secret, self.context, client, member)
        associated = pack([self.context, client, member, public, words]) + ciphertext
        try:
            plain = AESGCM(key).decrypt(bytes(12), box, associated)
        except InvalidTag:
            return None
        share = uniform(plain, N + ROWS) if len(plain) == 32 else elements(plain)
        rho = uniform(label("challenge", self.context, pack([client, public, words, digests])), ROWS * N)
        values = elements(proof)
        rows = [values[ROWS * k : ROWS * k + ROWS] for k in range(self.threshold)]
        return (
            share if interpolate(self.points[: self.threshold], rows, self.points[i]) == evaluate(rho, share) else None
        )

    def answer(self) -> None:
        answers: dict[int, list[int]] = {}
        for i, member in enumerate(self.bundles):
            if not self.speaks("members", member, 1):
                continue
            shares = {client: self.opened(client, i, member) for client in self.survivors}
            accused = [client for client, share in shares.items() if share is None]
            if accused:
                named = [[client, sha256(self.signed[client][0]).digest()] for client in accused]
                self.say(member, "Complaint", self.view, named)
                self.pairs += [[client, member] for client in accused]
                continue
            total = [sum(column) % P for column in zip(*(share[:N] for share in shares.values() if share), strict=True)]
            own = self.script["members"][str(member)]
            later = []
            if "next_rand" in own:
                rand = bytes.fromhex(own["next_rand"])
                later = [self.bundle(member, own["serial"] + 1, rand[:32], rand[32:])]
            self.say(member, "PartialSum", self.view, to_bytes(total), later)
            answers[self.points[i]] = total
        if len(answers) >= self.threshold:
            self.open_sum(answers)

    def say(self, member: int, kind: str, *fields: Any) -> None:
        covered = encode(kind, self.context, member, *fields, suite=self.suite)
        self.messages.append((member, 0, kind, covered + sign(self.identities[member], kind, covered)))

    def open_sum(self, answers: Mapping[int, list[int]]) -> None:
        points = list(answers)[: self.threshold]
        key = interpolate(points, [answers[x] for x in points], 0)
        key = [value - P if value > P // 2 else value for value in key]
        if max(map(abs, key)) > bound(len(self.survivors)):
            raise ValueError("the sum of the keys is too large")
        left = [(y - a) % Q for y, a in zip(self.total, mask_of(self.matrix, key, len(self.total)), strict=True)]
        half = 1 << self.tau - 1
        errors = [(value + half) % (1 << self.tau) - half for value in left]
        if max(map(abs, errors)) > bound(len(self.survivors)):
            raise ValueError("the sum of the errors is too large")
        entries = [((value - error) % Q) >> self.tau for value, error in zip(left, errors, strict=True)]
        if any(entries[self.length :]):
            raise ValueError("the canaries are not zero")
        self.result = entries[: self.length]
        summed = sha256(b"".join(entry.to_bytes(4, "little") for entry in self.result)).digest()
        self.transcript = label("transcript", self.view, summed)

"""Masks cannot be guessed: where seeds come from, how much of them counts, and what code could make them otherwise."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import protocols
from protocols import ClientId, PairwiseClient
from protocols.one_shot import OneShotClient, OneShotMember
from protocols.one_shot.rules import Rules as OneShotRules
from protocols.pairwise import OneTimeKeys
from protocols.pairwise.rules import Rules
from protocols.primitives import keys, prg
from tests.one_shot.game import Game
from tests.rounds import Round, random_vectors, round_config

from .hostile import ids, small_round
from .seams import listening

PACKAGE = Path(protocols.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# Everything that `protocols` takes from outside, whole modules or single names. A new entry is a decision.
STANDARD = {
    "__future__", "abc", "builtins", "collections", "collections.abc", "contextlib", "dataclasses", "enum", "functools",
    "hashlib", "itertools", "math", "os", "struct", "types", "typing",
}  # fmt: skip
CRYPTOGRAPHY = {
    "InvalidSignature", "InvalidTag", "UnsupportedAlgorithm", "Ed25519PrivateKey", "Ed25519PublicKey",
    "MLKEM768PrivateKey", "MLKEM768PublicKey", "X25519PrivateKey", "X25519PublicKey", "Cipher", "algorithms", "modes",
    "AESGCM", "SHA256", "HKDF",
}  # fmt: skip
GENERATORS = {"random", "default_rng", "RandomState", "Generator", "PCG64", "MT19937", "SeedSequence", "seed_all"}


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that comes from outside the package; the name is empty for whole modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.module or "", alias.name) for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
class TestCode:
    def test_no_other_generator_is_in_reach(self, path: Path) -> None:
        """Neither imported, nor an attribute of numpy under whatever name, nor imported by name at run time."""
        tree = ast.parse(path.read_text())
        for module, name in imported(tree):
            top = module.partition(".")[0]
            assert module in STANDARD or top in {"cryptography", "msgspec", "numpy"}, module
            assert not GENERATORS & {*module.split("."), name}, (module, name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                assert node.attr not in GENERATORS, ast.unparse(node)
            if isinstance(node, ast.Name):
                assert node.id not in {"__import__", "importlib", "eval", "exec", "getrandbits"}, node.id

    def test_only_these_algorithms_are_used(self, path: Path) -> None:
        """AES in counter mode and AES-GCM; from `os` nothing but its generator."""
        tree = ast.parse(path.read_text())
        for module, name in imported(tree):
            if module.partition(".")[0] == "cryptography":
                assert name in CRYPTOGRAPHY, (module, name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                allowed = {"algorithms": {"AES"}, "modes": {"CTR"}, "os": {"urandom"}}.get(node.value.id)
                assert allowed is None or node.attr in allowed, ast.unparse(node)


class TestSeeds:
    @pytest.mark.parametrize("suite", [1, 2])
    def test_every_seed_of_a_round_is_a_key_of_256_bits(self, suite: int) -> None:
        """Listening checks cipher and size. Folded or stretched short seeds would be of low rank, or repeat words."""
        with listening() as seams:
            game = Round(round_config(16, suite=suite), random_vectors(16, 5))
            game.run()
        secrets = sorted({stream.key for stream in seams.streams} | {key for key, _ in seams.seals})
        assert len(secrets) >= 16 + 16 * 15 // 2 + 16 * 15
        bits = np.unpackbits(np.frombuffer(b"".join(secrets), dtype=np.uint8).reshape(-1, 32), axis=1)
        assert rank(bits[:280]) > 240
        words = np.frombuffer(b"".join(secrets), dtype="<u4")
        assert len(words) - len(set(words.tolist())) <= 4
        # Each bit is set in about half of them; 8 deviations, so that no honest run fails.
        assert (abs(bits.mean(axis=0) - 0.5) < 4 / len(secrets) ** 0.5).all()

    def test_every_bit_of_every_secret_counts(self) -> None:
        """One bit of a secret changed is another key: none is dropped on the way to a mask or a seal."""
        game = small_round()
        rules: Rules = game.server._rules
        one, two = ids(1, 2)
        secret, other = bytes(range(32)), bytes(range(100, 132))
        derived: dict[str, Callable[[bytes], bytes]] = {
            "self mask": lambda s: rules.self_mask_seed(one, s),
            "agreed": lambda s: rules.pair_mask_seed(s, {one: other, two: other}),
            "lower half": lambda s: rules.pair_mask_seed(other, {one: s, two: other}),
            "upper half": lambda s: rules.pair_mask_seed(other, {one: other, two: s}),
            "half": lambda s: rules.pair_half(s, one, two),
            "channel": lambda s: rules.channel_key(s + other, one, two),
            "encapsulated": lambda s: rules.channel_key(other + s, one, two),
            "half key": lambda s: rules.half_key(s, one, two),
            "KEM seed": lambda s: keys.AgreementKey(s, keys.HYBRID).public[32:],
        }
        for name, derive in derived.items():
            outcomes = {derive(flipped(secret, bit)) for bit in range(256)} | {derive(secret)}
            assert len(outcomes) == 257, name
        committee: OneShotRules = Game().server._rules
        assert len({committee.channel(flipped(secret, bit), one, two) for bit in range(256)}) == 256

    def test_every_bit_of_a_seed_changes_the_keystream(self) -> None:
        def stream(seed: bytes) -> bytes:
            words = np.zeros(4, dtype="<u4")
            prg.apply_masks(words, add=[seed], subtract=[])
            return words.tobytes()

        assert len({stream(flipped(bytes(32), bit)) for bit in range(256)}) == 256

    def test_the_source_is_the_operating_system(self) -> None:
        """By default, and asked for whole secrets: at least 32 bytes for each of the three, none of them shared."""
        for made in (PairwiseClient, OneTimeKeys, OneShotClient, OneShotMember):
            parameters = made.__init__.__kwdefaults__ or {}
            assert parameters["rand"] is os.urandom
        asked: list[int] = []
        drawn: list[bytes] = []

        def rand(size: int) -> bytes:
            asked.append(size)
            drawn.append(os.urandom(size))
            return drawn[-1]

        game = Round(round_config(4, threshold=3), random_vectors(4, 5), rand={ClientId(1): rand})
        game.run()
        # Two private keys, the fresh bytes of the bundle, the self seed; then coefficients of two secrets' shares.
        assert asked[:4] == [32, 32, 32, 32]
        assert sum(asked[4:]) >= 2 * 2 * 18 * 2
        assert len(set(drawn)) == len(drawn)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def rank(bits: np.ndarray) -> int:
    """Of a matrix over the field of two elements."""
    rows = [int("".join(map(str, row)), 2) for row in bits.tolist()]
    found = 0
    while rows:
        pivot = rows.pop()
        if pivot:
            found += 1
            low = pivot & -pivot
            rows = [row ^ pivot if row & low else row for row in rows]
    return found

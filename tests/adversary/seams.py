"""The two places where secrets meet a cipher: mask expansion (`prg`) and sealing (`keys`). A test can listen there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, CipherAlgorithm, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.primitives import keys, prg

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stream:
    """A keystream that somebody made: whose, its key, the counter block that it starts from."""

    by: object
    key: bytes
    first_block: int


@dataclass
class Seams:
    """Everything that went through both places, in order."""

    by: object = None
    streams: list[Stream] = field(default_factory=list)
    seals: list[tuple[bytes, bytes]] = field(default_factory=list)  # key, nonce

    def heard(self, by: object, action: Callable[[], T]) -> T:
        """Runs something in somebody's name."""
        before, self.by = self.by, by
        try:
            return action()
        finally:
            self.by = before

    def made_by(self, *parties: object) -> list[Stream]:
        return [stream for stream in self.streams if stream.by in parties]


@contextmanager
def listening() -> Iterator[Seams]:
    """Listens at both seams; another algorithm, mode or key size than the agreed one fails at once."""
    seams = Seams()

    def cipher(algorithm: CipherAlgorithm, mode: modes.CTR) -> Cipher[modes.CTR]:
        assert type(algorithm) is algorithms.AES
        assert type(mode) is modes.CTR
        assert len(algorithm.key) == 32
        seams.streams.append(Stream(seams.by, bytes(algorithm.key), int.from_bytes(mode.nonce, "big")))
        return Cipher(algorithm, mode)

    class Sealing:
        def __init__(self, key: bytes) -> None:
            assert len(key) == 32
            self.key, self.inner = bytes(key), AESGCM(key)

        def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
            seams.seals.append((self.key, bytes(nonce)))
            return self.inner.encrypt(nonce, data, associated_data)

        def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
            return self.inner.decrypt(nonce, data, associated_data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prg, "Cipher", cipher)
        patch.setattr(keys, "AESGCM", Sealing)
        yield seams

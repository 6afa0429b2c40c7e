"""A sealing key seals one message: the nonce is constant, so a second one would give both away."""

from __future__ import annotations

import pytest

from protocols.primitives import keys
from tests.one_shot.game import Game
from tests.rounds import Round, random_vectors, round_config


@pytest.fixture
def sealed_with(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every key that anybody seals with, in order."""
    used: list[bytes] = []
    seal = keys.seal

    def watched(key: bytes, plaintext: bytes, *, associated: bytes) -> bytes:
        used.append(key)
        return seal(key, plaintext, associated=associated)

    monkeypatch.setattr(keys, "seal", watched)
    return used


@pytest.mark.parametrize("suite", keys.SUITES.values(), ids=lambda suite: f"suite {suite.number}")
def test_of_a_pair_of_clients_each_direction_has_keys_of_its_own(suite: keys.Suite, sealed_with: list[bytes]) -> None:
    """Both ends agree on one X25519 secret, so nothing but the direction tells their two messages apart in suite 1."""
    game = Round(round_config(4, suite=suite.number), random_vectors(4, 5))
    game.run()
    kinds = 2 if suite.ciphertext_bytes else 1  # shares, and in the hybrid suite a half
    assert len(sealed_with) == len(set(sealed_with)) == 4 * 3 * kinds


def test_of_a_one_shot_client_each_member_has_a_key_of_its_own(sealed_with: list[bytes]) -> None:
    game = Game()
    game.run()
    assert len(sealed_with) == len(set(sealed_with)) == len(game.clients) * len(game.members)

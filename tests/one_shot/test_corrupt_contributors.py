"""Members are on the roster, so a corrupt one can contribute: the floor counts all of them as contributors."""

from __future__ import annotations

import numpy as np
import pytest

from protocols import ClientId

from .game import Game, members, random_vectors, round_config
from .hostile import ONE

M1, M2, *_ = members(5)


def alone_with(*corrupt: ClientId) -> Game:
    """The server keeps one honest contribution, and lets all corrupt members contribute beside it."""
    config = round_config(4, corrupt_holders=len(corrupt))
    object.__setattr__(config, "min_survivors", 1 + len(corrupt))
    vectors = random_vectors(1) | dict(zip(corrupt, random_vectors(4, seed=1).values(), strict=False))
    return Game(config, vectors, identities=Game().identities)


@pytest.mark.parametrize("corrupt", [(M1,), (M1, M2)])
def test_members_that_contribute_read_a_client_that_is_left_alone_with_them(corrupt: tuple[ClientId, ...]) -> None:
    """No such configuration can be made; forced on everybody, the sum less their own vectors is the victim's."""
    game = alone_with(*corrupt)
    sum_of_all = game.run().vector
    own = game.expected(frozenset(corrupt))
    read = (sum_of_all - own) % np.uint32(2**game.config.modulus_bits)
    assert np.array_equal(read, game.vectors[ONE])


@pytest.mark.parametrize("corrupt", [0, 1, 2])
def test_the_floor_leaves_two_honest_contributors(corrupt: int) -> None:
    round_config(4, corrupt_holders=corrupt, min_survivors=corrupt + 2)
    with pytest.raises(ValueError, match=f"min_survivors must be from corrupt_holders \\+ 2 = {corrupt + 2}"):
        round_config(4, corrupt_holders=corrupt, min_survivors=corrupt + 1)

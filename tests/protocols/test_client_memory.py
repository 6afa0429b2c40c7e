"""What one client keeps of a large cohort, once its keys are bound: the ids of strangers, and no more."""

import gc
import sys
from types import BuiltinFunctionType, FunctionType, ModuleType

import pytest

from protocols import PairwiseClient, Phase
from tests.rounds import Round, random_vectors, round_config

FEW, MANY = 30, 120
SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType)


def kept_bytes(game: Round, session: PairwiseClient) -> int:
    """The sizes of all that a session refers to, but for what all clients of a process have in common."""
    seen = {id(one) for one in (game.config, game.roster, session._rules.suite)}
    todo, size = [session.__dict__], 0
    while todo:
        one = todo.pop()
        if id(one) not in seen and not isinstance(one, SHARED):
            seen.add(id(one))
            size += sys.getsizeof(one)
            todo += gc.get_referents(one)
    return size


def kept_in_each_phase(clients: int, suite: int) -> dict[Phase, int]:
    game = Round(round_config(clients, degree=6, suite=suite), random_vectors(clients, 5))
    kept = {}
    game.start_once()
    while game.result is None:
        game.step()
        for session in list(game.clients.values())[:20]:
            kept[session.phase] = max(kept.get(session.phase, 0), kept_bytes(game, session))
    return kept


@pytest.mark.parametrize("suite", [1, 2])
def test_strangers_cost_four_bytes(suite: int) -> None:
    """A key bundle of the hybrid suite has 2.6 kB: ten thousand clients that keep all of them would need 260 GB."""
    few, many = kept_in_each_phase(FEW, suite), kept_in_each_phase(MANY, suite)
    assert few.keys() == many.keys() == {Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.CONSISTENCY_CHECK, Phase.FINISHED}
    growth = {phase: (many[phase] - few[phase]) / (MANY - FEW) for phase in few}
    # An integer above 256 takes 28 bytes, and less below: the ids of the six neighbours are not always the same size.
    slack = 6 * 28 / (MANY - FEW)
    assert {phase: size for phase, size in growth.items() if size > 4 + slack} == {}
    assert growth[Phase.FINISHED] <= slack

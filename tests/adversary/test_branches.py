"""The code of both protocols takes the same way whatever the secrets are: no branch and no loop length depends on one.

Two rounds of the same parties, with other keys, seeds and vectors, are traced instruction by instruction inside
`protocols`. This says nothing of time, of caches, or of the code below: see "not stopped" in the catalogue.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import shake_256
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import protocols
from protocols import ClientId, Event, PairwiseClient
from protocols.one_shot import OneShotClient, OneShotMember
from protocols.wire import ConsistencyCheck, MaskedInput, Unmask
from tests.one_shot import game as one_shot
from tests.rounds import RandomBytes, Round, faithful, round_config

from .hostile import ids, silencing

PACKAGE = str(Path(protocols.__file__).parent)
Instruction = tuple[str, str, int]
ALL = ids(1, 2, 3, 4)


@contextmanager
def traced(into: list[Instruction]) -> Iterator[None]:
    """Every bytecode instruction that runs in `protocols`, in order."""

    def follow(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            into.append((frame.f_code.co_filename, frame.f_code.co_qualname, frame.f_lasti))
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        yield
    finally:
        sys.settrace(before)


def stream(name: str) -> RandomBytes:
    """Reproducible randomness, so that no run of the test meets a rejected draw which another one does not."""
    drawn = 0

    def rand(size: int) -> bytes:
        nonlocal drawn
        drawn += size
        return shake_256(name.encode()).digest(drawn)[drawn - size :]

    return rand


class TracedRound(Round):
    """Traces every call of every client, in order."""

    steps: list[tuple[ClientId, list[Instruction]]]

    def call(self, client: ClientId, action: Callable[[], list[Event]]) -> None:
        def watched() -> list[Event]:
            instructions: list[Instruction] = []
            self.steps.append((client, instructions))
            with traced(instructions):
                return action()

        super().call(client, watched)


def pairwise_round(secret: str, suite: int, fill: int, lost: ClientId | None) -> TracedRound:
    config = round_config(4, threshold=3, suite=suite, length=20, round_id=bytes(32))
    game = TracedRound(
        config,
        {client: np.full(20, fill, dtype=np.uint32) for client in ALL},
        rand={client: stream(f"{secret}/{client}") for client in ALL},
        network=silencing(lost, MaskedInput, ConsistencyCheck, Unmask) if lost else faithful,
    )
    game.steps = []
    game.run()
    return game


@pytest.mark.parametrize("lost", [None, ClientId(4)], ids=["all alive", "one lost"])
@pytest.mark.parametrize("suite", [1, 2])
def test_a_pairwise_round_runs_the_same_instructions_whatever_its_secrets(suite: int, lost: ClientId | None) -> None:
    pairwise_round("first", suite, 1, lost)  # fills what is remembered for a number of holders: powers, weights
    one = pairwise_round("one", suite, 0, lost)
    other = pairwise_round("other", suite, 2**32 - 1, lost)
    assert one.server._rules.bundles != other.server._rules.bundles
    assert len(one.steps) == len(other.steps) > 4 * 6
    for (client, expected), (same, found) in zip(one.steps, other.steps, strict=True):
        assert client == same
        assert found == expected
    assert sum(len(instructions) for _, instructions in one.steps) > 10_000
    seen = {name for _, instructions in one.steps for _, name, _ in instructions}
    assert {"share", "seal", "apply_masks", "Rules.pair_mask_seed", "PairwiseClient._unseal"} <= seen


class TracedGame(one_shot.Game):
    """Traces every call of every client and member, in order."""

    steps: list[tuple[ClientId, list[Instruction]]]

    def call(self, session: OneShotClient | OneShotMember, action: Callable[[], list[Event]]) -> None:
        def watched() -> list[Event]:
            instructions: list[Instruction] = []
            self.steps.append((session._me, instructions))
            with traced(instructions):
                return action()

        super().call(session, watched)


def one_shot_round(secret: str, fill: int) -> TracedGame:
    config = one_shot.round_config(3, round_id=bytes(32))
    game = TracedGame(config, {client: np.full(5, fill, dtype=np.uint32) for client in ids(1, 2, 3)})
    for session in game.sessions:
        session._rand = stream(f"{secret}/{session._me}")
    game.steps = []
    game.run()
    return game


def test_a_one_shot_round_runs_the_same_instructions_whatever_its_secrets() -> None:
    one_shot_round("first", 1)
    one, other = one_shot_round("one", 0), one_shot_round("other", 2**22 - 1)
    assert len(one.steps) == len(other.steps) > 3 * 3 + 5 * 3
    for (party, expected), (same, found) in zip(one.steps, other.steps, strict=True):
        assert party == same
        assert found == expected
    seen = {name for _, instructions in one.steps for _, name, _ in instructions}
    assert {"share", "sample", "add_errors", "add_mask", "OneShotMember._open"} <= seen


@pytest.mark.parametrize("fault", ["branch", "loop"])
def test_the_comparison_sees_a_branch_on_a_secret(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code inside the package that looks at one bit, or counts bits, is seen: otherwise nothing above could fail."""
    honest = PairwiseClient.contribute
    program = {
        "branch": "def contribute(self, vector):\n    x = 1 if vector[0] else 2 + 2 * len(vector)\n"
        "    return honest(self, vector)",
        "loop": "def contribute(self, vector):\n    for _ in range(int(vector[0]).bit_count()): pass\n"
        "    return honest(self, vector)",
    }[fault]
    names: dict[str, Any] = {"honest": honest}
    exec(compile(program, f"{PACKAGE}/fault.py", "exec"), names)
    monkeypatch.setattr(PairwiseClient, "contribute", names["contribute"])
    pairwise_round("first", 1, 1, None)
    one, other = pairwise_round("one", 1, 0, None), pairwise_round("other", 1, 2**32 - 1, None)
    assert [found for _, found in one.steps] != [found for _, found in other.steps]

"""A sample of `fuzz`, and that it gets behind the decoders."""

import pytest

from .fuzz import MEMORY, fuzz
from .live import targets


@pytest.mark.parametrize("seed", [1, 2])
def test_only_typed_errors_come_out_and_nothing_large_is_allocated(seed: int) -> None:
    tally = fuzz(4000, seed)
    assert 100 < tally.decoded < 2000, "damage that the encoding shows, and damage that only a session can see"
    assert tally.taken.total() > 0, "hostile senders and servers may also say what is allowed"
    assert tally.peak < MEMORY


def test_every_phase_of_every_party_is_a_target() -> None:
    names = [target.name for target in targets(1)]
    assert len(set(names)) == len(names) == 2 * (5 + 4) + 4 + 1 + 2

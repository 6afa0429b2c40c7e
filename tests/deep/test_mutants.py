"""The faults of `mutants` are where they say: a change of the code must not disarm one silently."""

from .mutants import MUTANTS, misplaced


def test_every_fault_can_be_made() -> None:
    assert misplaced() == []
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 15

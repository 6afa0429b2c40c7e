"""The faults of `mutants` are where they say, and so are their tests: a change must not disarm one silently."""

from __future__ import annotations

import pytest

from .mutants import FAULTS, ROOT, misplaced


def test_every_fault_can_be_made() -> None:
    assert misplaced() == []
    assert all(fault.old != fault.new for fault in FAULTS)
    assert len({(fault.name, fault.file) for fault in FAULTS}) == len(FAULTS) >= 70


@pytest.mark.parametrize("target", sorted({target for fault in FAULTS for target in fault.targets}))
def test_every_target_is_there(target: str) -> None:
    file, *rest = target.split("::")
    text = (ROOT / file).read_text()
    assert all(f"class {name}" in text for name in rest)

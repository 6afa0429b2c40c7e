"""A sample of `fuzz`."""

import pytest

from .fuzz import MEMORY, fuzz


@pytest.mark.parametrize("seed", [1, 2])
def test_only_malformed_comes_out_and_nothing_large_is_allocated(seed: int) -> None:
    still, peak = fuzz(4000, seed)
    assert 0 < still < 4000, "some damage is not visible in the encoding: signatures and seals see it"
    assert peak < MEMORY

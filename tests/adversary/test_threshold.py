"""The threshold is as low as it can be: counting shares over every split that a forking server can make."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import required_threshold


def both_secrets(honest: int, corrupt: int, threshold: int) -> bool:
    """Whether some split of the honest holders gives t shares of both secrets of one client.

    A corrupt holder gives both kinds of share; an honest one answers for one survivor set: "alive" (its share of the
    self seed), "dead" (of the mask key), or not at all.
    """
    for answers in product(("alive", "dead", "none"), repeat=honest):
        if min(answers.count("alive"), answers.count("dead")) + corrupt >= threshold:
            return True
    return False


@pytest.mark.parametrize("holders", range(2, 10))
def test_the_bound_is_tight(holders: int) -> None:
    """With 2t <= holders + corrupt some split works, with 2t > holders + corrupt none does."""
    for corrupt in range(holders):
        for threshold in range(1, holders + 1):
            breakable = both_secrets(holders - corrupt, corrupt, threshold)
            assert breakable == (2 * threshold <= holders + corrupt)


@pytest.mark.parametrize("holders", range(2, 10))
def test_the_required_threshold_is_the_first_that_holds(holders: int) -> None:
    for corrupt in range(holders):
        least = required_threshold(holders=holders, corrupt_holders=corrupt)
        assert not both_secrets(holders - corrupt, corrupt, least)
        assert least == min(3, holders) or both_secrets(holders - corrupt, corrupt, least - 1)


@given(holders=st.integers(2, 10**4), data=st.data())
def test_also_for_large_cohorts(holders: int, data: st.DataObject) -> None:
    """The best split is into halves, so no search is needed."""
    corrupt = data.draw(st.integers(0, holders - 1))
    least = required_threshold(holders=holders, corrupt_holders=corrupt)
    assert (holders - corrupt) // 2 + corrupt < least

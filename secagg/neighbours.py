"""Which neighbour graph a cohort gets, and what to change if none is safe."""

from __future__ import annotations

from collections.abc import Callable

from protocols import required_threshold
from protocols.graph import COMPLETE_UP_TO, Degree, choose_degree

MAX_COMPLETE = 1000  # clients of a complete graph: beyond, a round costs each of them seconds


def choose_graph(clients: int, *, max_colluders: int, max_dropouts: int) -> Degree | None:
    """The graph of a round; None if its threshold cannot be met, or if it would be complete and too large."""
    if max_colluders >= clients - max_dropouts and clients > COMPLETE_UP_TO:
        return None
    chosen = choose_degree(clients=clients, max_colluders=max_colluders, max_dropouts=max_dropouts)
    complete = chosen.degree == clients - 1
    threshold = required_threshold(holders=chosen.degree + 1, corrupt_holders=chosen.corrupt_holders)
    if (complete and clients > MAX_COMPLETE) or clients - max_dropouts < threshold:
        return None
    return chosen


def require_graph(clients: int, *, max_colluders: int, max_dropouts: int) -> Degree:
    """The graph of a round.

    Raises:
        ValueError: none is safe; names what is possible if one of the two numbers stays.
    """
    chosen = choose_graph(clients, max_colluders=max_colluders, max_dropouts=max_dropouts)
    if chosen is not None:
        return chosen
    fewer_dropouts = _most(
        "max_dropouts",
        max_dropouts,
        lambda number: choose_graph(clients, max_colluders=max_colluders, max_dropouts=number) is not None,
    )
    fewer_colluders = _most(
        "max_colluders",
        max_colluders,
        lambda number: choose_graph(clients, max_colluders=number, max_dropouts=max_dropouts) is not None,
    )
    raise ValueError(
        f"no graph is safe for {clients} clients with max_colluders = {max_colluders} and "
        f"max_dropouts = {max_dropouts}; possible are, with max_colluders = {max_colluders}: {fewer_dropouts}; "
        f"with max_dropouts = {max_dropouts}: {fewer_colluders}"
    )


def _most(name: str, refused: int, possible: Callable[[int], bool]) -> str:
    """The largest possible number below one that is not."""
    low, high = -1, refused  # high is not possible, low is, or is below every number
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if possible(middle) else (low, middle)
    return f"no {name} at all" if low < 0 else f"{name} up to {low}"

"""Who shares masks with whom: the complete graph (SecAgg) or a k-regular ring (SecAgg+), and which degree is enough.

- The ring is drawn from a commitment to all signed key bundles, each of which holds 32 fresh random bytes: no server
  chooses the graph, it can only try cohorts.
- With k neighbours, n clients, A of them corrupt and D dropping out, a degree is enough if all of these hold (after
  Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020, section 3; probabilities
  over the ring, union bound over clients):

  1. secret: no client has more than x corrupt neighbours;
  2. whole: no two disjoint runs of k/2 ring places hold more than h corrupt clients each. The server knows the ring and
     chooses who counts as dropped: it could declare two such runs dead and unmask each arc between them on its own. The
     honest client at either end of an arc then has at most k/2 + 1 + h holders, so with t >= k/2 + 2 + h it refuses,
     and its self seed stays where it is;
  3. correct: every client keeps t neighbours, except with probability 2^-CORRECTNESS.

  1 and 2 fail with probability 2^-SECURITY at most, even in the smallest cohort that the server can make by leaving D
  honest clients out. Both follow from one threshold, t = floor((k + 1 + c) / 2) + 1 with c = max(x, 2h + 1) "corrupt
  holders": 2t > k + 1 + x, and t >= k/2 + 2 + h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import shake_256
from math import log

import numpy as np
from numpy.typing import NDArray

from .errors import ClientId

COMPLETE_UP_TO = (
    100  # below, the complete graph costs a client under 0.1 s at d = 10^6, and the formulas treat counts as exact
)
MAX_DEGREE = 2600
SECURITY = 80  # bits: leaves 40 after a server tried 2^40 cohorts to get a graph it likes
CORRECTNESS = 30  # bits


class NeighbourGraph:
    """The neighbour sets of one round.

    Args:
        members: clients with a key bundle, in increasing order.
        degree: neighbours per client; len(members) - 1 or more gives the complete graph.
        seed: 32 bytes that nobody controls, for the order on the ring.
    """

    def __init__(self, members: Sequence[ClientId], *, degree: int, seed: bytes) -> None:
        self._members = tuple(members)
        self._holders: dict[ClientId, tuple[ClientId, ...]] = {}  # sorting is asked for many times a client
        self._complete = degree >= len(members) - 1
        if not self._complete:
            # A random 128-bit key for each member sorts them into a uniform order; equal keys have probability 2^-100.
            stream = shake_256(b"secagg/v1/pairwise/graph" + seed).digest(16 * len(members))
            keys = np.frombuffer(stream, dtype=">u8").reshape(-1, 2)
            self._ring = [self._members[i] for i in np.lexsort((keys[:, 1], keys[:, 0]))]
            self._place = {client: i for i, client in enumerate(self._ring)}
            self._reach = degree // 2

    def holders(self, client: ClientId) -> tuple[ClientId, ...]:
        """The client and its neighbours, in increasing order: slot i of its shares belongs to holder i."""
        if self._complete:
            return self._members
        if client not in self._holders:
            place, size = self._place[client], len(self._ring)
            near = range(place - self._reach, place + self._reach + 1)
            self._holders[client] = tuple(sorted(self._ring[i % size] for i in near))
        return self._holders[client]

    def around(self, client: ClientId) -> NeighbourGraph:
        """The same graph for whoever asks for the holders of this one client only: it takes no room for the others."""
        near = NeighbourGraph((), degree=0, seed=b"")
        near._complete, near._holders = False, {client: self.holders(client)}
        return near


@dataclass(frozen=True, slots=True, kw_only=True)
class Degree:
    """A degree and the number of corrupt holders of one client's secrets that it must be expected to have."""

    degree: int
    corrupt_holders: int


def choose_degree(*, clients: int, max_colluders: int, max_dropouts: int) -> Degree:
    """The smallest degree that meets all conditions; the complete graph if none does or the cohort is small.

    Args:
        clients: n.
        max_colluders: A, corrupt clients.
        max_dropouts: D, clients that may vanish.
    """
    complete = Degree(degree=clients - 1, corrupt_holders=max_colluders)
    if clients <= COMPLETE_UP_TO:
        return complete
    smallest = clients - max_dropouts
    if max_colluders >= smallest:
        raise ValueError(f"{max_colluders} colluders could be all of {smallest} survivors")
    for degree in range(2, min(smallest - 2, MAX_DEGREE) + 1, 2):
        corrupt = _corrupt_holders(clients, smallest, max_colluders, degree)
        threshold = required_threshold(holders=degree + 1, corrupt_holders=corrupt)
        if threshold > degree:
            continue
        too_few = _log_tails(clients - 1, max_dropouts, degree)[degree - threshold + 1]
        if log(clients) + too_few <= -CORRECTNESS * log(2):
            return Degree(degree=degree, corrupt_holders=corrupt)
    return complete


def required_threshold(*, holders: int, corrupt_holders: int) -> int:
    """The smallest threshold that an active server with `corrupt_holders` allies among a client's holders cannot bend.

    With 2t > holders + corrupt_holders, two disjoint groups of honest holders can never both reach t, so the server
    cannot collect t shares of both secrets of one client (Bonawitz et al., CCS 2017, section 6.2). Never below 3,
    except between two clients, where 2 hides nothing from each other. For rings see this module's rule 2.
    """
    return max(min(3, holders), (holders + corrupt_holders) // 2 + 1)


def _corrupt_holders(clients: int, smallest: int, colluders: int, degree: int) -> int:
    """C of this module: what the threshold must withstand at a degree."""
    rare = -SECURITY * log(2)

    def least(draws: int, allowed: float) -> int:
        """The smallest count that a sample of `draws` passes with log-probability `allowed` at most."""
        return int(np.argmax(_log_tails(smallest - 1, colluders, draws)[1:] <= allowed))

    neighbours = least(degree, rare - log(clients))
    one_side = least(degree // 2, rare / 2 - log(clients))  # two runs must fail together
    return max(neighbours, 2 * one_side + 1)


def _log_tails(population: int, marked: int, draws: int) -> NDArray[np.float64]:
    """Log of P[X >= x] for x = 0 .. draws + 1, X hypergeometric: marked members among `draws` out of `population`."""
    logs = _log_factorials(population)

    def choose(n: int, k: NDArray[np.int64] | int) -> NDArray[np.float64]:
        chosen: NDArray[np.float64] = logs[n] - logs[k] - logs[n - k]
        return chosen

    counts = np.arange(max(0, draws - (population - marked)), min(draws, marked) + 1)
    masses = choose(marked, counts) + choose(population - marked, draws - counts) - choose(population, draws)
    tails = np.full(draws + 2, -np.inf)
    tails[counts] = np.logaddexp.accumulate(masses[::-1])[::-1]
    tails[: counts[0]] = 0.0
    return tails


@lru_cache(maxsize=4)
def _log_factorials(n: int) -> NDArray[np.float64]:
    """Log of 0!, 1!, ..., n!."""
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))

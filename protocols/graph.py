"""Who shares masks with whom: the complete graph (SecAgg) or a k-regular ring (SecAgg+).

The ring is drawn from a commitment to all signed key bundles, each of which holds 32 fresh random bytes: no server
chooses the graph, it can only choose among rosters. Source: Bell et al., "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", CCS 2020, section 3 (Harary graphs).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import shake_256

import numpy as np

from .errors import ClientId


class NeighbourGraph:
    """The neighbour sets of one round.

    Args:
        members: clients with a key bundle, in increasing order.
        degree: neighbours per client; len(members) - 1 or more gives the complete graph.
        seed: 32 bytes that nobody controls, for the order on the ring.
    """

    def __init__(self, members: Sequence[ClientId], *, degree: int, seed: bytes) -> None:
        self._members = tuple(members)
        self._complete = degree >= len(members) - 1
        if not self._complete:
            # A random 128-bit key for each member sorts them into a uniform order; equal keys have probability 2^-100.
            keys = np.frombuffer(shake_256(b"secagg/v1/graph" + seed).digest(16 * len(members)), dtype=">u8").reshape(
                -1, 2
            )
            self._ring = [self._members[i] for i in np.lexsort((keys[:, 1], keys[:, 0]))]
            self._place = {client: i for i, client in enumerate(self._ring)}
            self._reach = degree // 2

    def holders(self, client: ClientId) -> tuple[ClientId, ...]:
        """The client and its neighbours, in increasing order: slot i of its shares belongs to holder i."""
        if self._complete:
            return self._members
        place, size = self._place[client], len(self._ring)
        return tuple(sorted(self._ring[(place + step) % size] for step in range(-self._reach, self._reach + 1)))

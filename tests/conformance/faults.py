"""What may happen to messages and to clients, as hypothesis strategies."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from protocols import ClientId, RoundConfig, required_threshold
from protocols.primitives.packing import LANE_BITS, largest_entry
from tests.rounds import Delivery, Vector, round_config

MESSAGES_EACH_WAY = 5


@dataclass(frozen=True)
class Fault:
    """What the network does with one message: how many copies arrive, how many phases late, which bit is flipped."""

    copies: int = 1
    phases_late: int = 0
    flipped_bit: int | None = None  # modulo the number of bits

    def apply(self, data: bytes) -> list[bytes]:
        if self.flipped_bit is not None:
            damaged = bytearray(data)
            place = self.flipped_bit % (8 * len(data))
            damaged[place // 8] ^= 1 << place % 8
            data = bytes(damaged)
        return [data] * self.copies


Address = tuple[ClientId, bool, int]  # client, whether it is the sender, number of the message in that direction


@dataclass
class FaultyNetwork:
    """Delivers clients' messages in any order when the server closes a phase, with faults by address."""

    faults: dict[Address, Fault]
    order: int = 0
    clock: int = 0
    counts: dict[tuple[ClientId, bool], int] = field(default_factory=dict)
    waiting: list[tuple[int, Delivery]] = field(default_factory=list)

    def __call__(self, sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        client, upwards = (sender, True) if sender is not None else (receiver, False)
        assert client is not None
        number = self.counts.get((client, upwards), 0)
        self.counts[client, upwards] = number + 1
        fault = self.faults.get((client, upwards, number), Fault())
        arriving = fault.apply(data)
        if upwards or fault.phases_late:
            self.waiting += [(self.clock + fault.phases_late, (sender, receiver, copy)) for copy in arriving]
            return []
        return arriving

    def late(self) -> list[Delivery]:
        due = [delivery for when, delivery in self.waiting if when <= self.clock]
        self.waiting = [(when, delivery) for when, delivery in self.waiting if when > self.clock]
        self.clock += 1
        return [due[i] for i in np.random.default_rng(self.order + self.clock).permutation(len(due))]


def silent(client: ClientId, after: int) -> dict[Address, Fault]:
    """The client sends its first `after` messages, and then none."""
    return {(client, True, number): Fault(copies=0) for number in range(after, MESSAGES_EACH_WAY)}


faults = st.builds(
    Fault,
    copies=st.sampled_from([0, 1, 1, 2, 3]),
    phases_late=st.sampled_from([0, 0, 1, 2]),
    flipped_bit=st.none() | st.integers(0, 2**20),
)


@st.composite
def networks(draw: st.DrawFn, cohort: int) -> FaultyNetwork:
    """Up to six faults anywhere."""
    addresses = st.tuples(st.integers(1, cohort).map(ClientId), st.booleans(), st.integers(0, MESSAGES_EACH_WAY - 1))
    return FaultyNetwork(faults=draw(st.dictionaries(addresses, faults, max_size=6)), order=draw(st.integers(0, 9)))


@st.composite
def rounds(draw: st.DrawFn, *, complete: bool) -> tuple[RoundConfig, dict[ClientId, Vector]]:
    """Any small round: sizes, thresholds, floors, lanes; and its vectors, extremes included."""
    cohort = draw(st.integers(2 if complete else 4, 9))
    degree = cohort - 1 if complete else 2 * draw(st.integers(1, (cohort - 2) // 2))
    corrupt = draw(st.integers(0, min(2, degree)) if complete else st.integers(1, min(3, degree - 1)))
    least = required_threshold(holders=degree + 1, corrupt_holders=corrupt)
    threshold = draw(st.integers(least, degree + 1))
    bits, length = draw(st.sampled_from(LANE_BITS)), draw(st.integers(1, 30))
    config = round_config(
        cohort,
        degree=degree,
        threshold=threshold,
        min_survivors=draw(st.integers(threshold if complete else degree + 2, cohort)),
        corrupt_holders=corrupt,
        length=length,
        modulus_bits=bits,
        suite=draw(st.sampled_from([1, 2])),
    )
    limit = largest_entry(bits, cohort)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    vectors = rng.integers(0, limit, size=(cohort, length), dtype=np.uint64, endpoint=True).astype(np.uint32)
    vectors[:, 0] = draw(st.sampled_from([0, limit]))
    return config, {ClientId(i + 1): vector for i, vector in enumerate(vectors)}

"""The agreement of a round: which configurations exist, and that every field counts."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import LocalProtocolError, Phase, ProtocolError, RoundConfig, required_threshold
from protocols.primitives.packing import LANE_BITS, PACKED_BITS
from protocols.session import CLIENT_TRANSITIONS, MAX_LENGTH, SERVER_TRANSITIONS
from tests.rounds import round_config

GOOD = RoundConfig(
    round_id=bytes(32), cohort=10, threshold=7, min_survivors=8, degree=9, corrupt_holders=2,
    length=100, modulus_bits=16, model=bytes(32), binding=bytes(32),
)  # fmt: skip


def replaced(**changes: object) -> RoundConfig:
    return dataclasses.replace(GOOD, **changes)  # type: ignore[arg-type]


class TestRequiredThreshold:
    @given(n=st.integers(2, 400), data=st.data())
    def test_complete_graph(self, n: int, data: st.DataObject) -> None:
        """The smallest that no split of the honest holders reaches twice."""
        corrupt = data.draw(st.integers(0, n - 1))
        threshold = required_threshold(holders=n, corrupt_holders=corrupt)
        # Honest holders answer for one secret only, corrupt ones for both.
        smaller_half = (n - corrupt) // 2 + corrupt
        assert smaller_half < threshold <= n
        assert threshold <= 3 or smaller_half == threshold - 1

    @given(half=st.integers(1, 200), data=st.data())
    def test_ring(self, half: int, data: st.DataObject) -> None:
        """One more than the end of an arc can have: itself, one side, and h corrupt ones of the other."""
        degree, h = 2 * half, data.draw(st.integers(0, (half - 1) // 2))
        threshold = required_threshold(holders=degree + 1, corrupt_holders=2 * h + 1)
        assert threshold == max(3, 1 + half + h + 1)
        assert 2 * threshold > degree + 1 + 2 * h + 1

    @pytest.mark.parametrize(
        ("n", "corrupt", "threshold"),
        [(2, 0, 2), (2, 1, 2), (3, 0, 3), (4, 0, 3), (5, 0, 3), (6, 0, 4), (10, 3, 7), (100, 33, 67)],
    )
    def test_values(self, n: int, corrupt: int, threshold: int) -> None:
        assert required_threshold(holders=n, corrupt_holders=corrupt) == threshold


class TestRoundConfig:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"round_id": bytes(31)}, "round_id must have 32 bytes, got 31"),
            ({"model": b""}, "model must have 32 bytes, got 0"),
            ({"binding": bytes(33)}, "binding must have 32 bytes, got 33"),
            ({"cohort": 1}, "cohort must be from 2 to 65520, got 1"),
            ({"cohort": 65521}, "cohort must be from 2 to 65520, got 65521"),
            ({"degree": 10}, "degree must be even"),
            ({"degree": 7}, "degree must be even"),
            ({"degree": 0}, "degree must be even"),
            ({"degree": -2}, "degree must be even"),
            ({"corrupt_holders": -1}, "corrupt_holders must be from 0 to 9, got -1"),
            ({"corrupt_holders": 10}, "corrupt_holders must be from 0 to 9, got 10"),
            ({"threshold": 6}, "threshold must be from 7 to 10 .* got 6"),
            ({"threshold": 11}, "threshold must be from 7 to 10 .* got 11"),
            ({"threshold": 1}, "threshold must be from 7"),
            ({"min_survivors": 6}, "min_survivors must be from threshold = 7 to cohort = 10, got 6"),
            ({"min_survivors": 11}, "min_survivors must be from threshold = 7 to cohort = 10, got 11"),
            ({"degree": 8, "corrupt_holders": 1, "min_survivors": 9}, "needs min_survivors above 9, got 9"),
            ({"degree": 8, "corrupt_holders": 6, "min_survivors": 10}, "threshold must be from 8"),
            ({"degree": 8, "corrupt_holders": 0, "min_survivors": 10}, "corrupt_holders must be from 1 to 8"),
            ({"length": 0}, "length must be from 1"),
            ({"length": MAX_LENGTH + 1}, "length must be from 1"),
            ({"modulus_bits": 31}, "modulus_bits must be one of"),
            ({"modulus_bits": 64}, "modulus_bits must be one of"),
        ],
    )
    def test_refused(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replaced(**changes)

    @pytest.mark.parametrize("bits", PACKED_BITS)
    def test_packed_lanes_hold_at_least_a_sum_of_ones(self, bits: int) -> None:
        most = min(2**bits - 1, 1000)
        assert round_config(most, modulus_bits=bits).modulus_bits == bits
        if most == 2**bits - 1:
            with pytest.raises(ValueError, match="cannot hold a sum"):
                round_config(most + 1, modulus_bits=bits)

    @pytest.mark.parametrize("bits", LANE_BITS)
    def test_every_lane_width_and_the_largest_length(self, bits: int) -> None:
        assert replaced(modulus_bits=bits, length=MAX_LENGTH).length == MAX_LENGTH

    def test_two_clients_and_odd_complete_graphs(self) -> None:
        assert round_config(2).threshold == 2
        assert round_config(4).degree == 3
        assert round_config(1000, degree=32).holders == 33

    def test_every_field_is_in_the_digest(self) -> None:
        base: dict[str, object] = {
            "round_id": bytes(32), "cohort": 14, "threshold": 7, "min_survivors": 12, "degree": 8,
            "corrupt_holders": 1, "length": 100, "modulus_bits": 16, "model": bytes(32), "binding": bytes(32),
            "suite": 2,
        }  # fmt: skip
        other: dict[str, object] = {
            "round_id": b"\x01" * 32, "cohort": 15, "threshold": 8, "min_survivors": 13, "degree": 6,
            "corrupt_holders": 2, "length": 101, "modulus_bits": 32, "model": b"\x01" * 32, "binding": b"\x01" * 32,
            "suite": 1,
        }  # fmt: skip
        # Removable components need the complete graph: tests/protocols/test_removable.py has them.
        assert base.keys() == other.keys() == GOOD.__dataclass_fields__.keys() - {"removable"}
        configs = [base, base, *(base | {name: value} for name, value in other.items())]
        digests = [RoundConfig(**config).digest() for config in configs]  # type: ignore[arg-type]
        assert digests[0] == digests[1]
        assert len(set(digests)) == 1 + len(other)

    SMALL = st.fixed_dictionaries(
        {"threshold": st.integers(7, 10), "corrupt_holders": st.integers(0, 2), "length": st.integers(7, 10)}
    )

    @given(one=SMALL, two=SMALL)
    def test_values_cannot_change_places(self, one: dict[str, int], two: dict[str, int]) -> None:
        left, right = (round_config(10, **values, round_id=bytes(32)) for values in (one, two))  # type: ignore[arg-type]
        assert (left.digest() == right.digest()) == (one == two)

    def test_is_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            GOOD.threshold = 1  # type: ignore[misc]


class TestTables:
    @pytest.mark.parametrize("table", [CLIENT_TRANSITIONS, SERVER_TRANSITIONS])
    def test_one_line_from_first_to_last_phase(self, table: dict[tuple[Phase, str], Phase]) -> None:
        """Each phase has one way on, nothing loops, and nothing leads out of an end."""
        followers = {phase: following for (phase, _), following in table.items()}
        assert len(followers) == len(table)
        (phase,) = set(followers) - set(followers.values())
        path = [phase]
        while phase in followers:
            phase = followers[phase]
            assert phase not in path
            path.append(phase)
        assert path[-1] is Phase.FINISHED
        assert len(path) == len(table) + 1
        assert Phase.ABORTED not in path


def test_errors_say_who_and_when() -> None:
    error: ProtocolError = LocalProtocolError("text", phase="Unmask")
    assert (str(error), error.client_id, error.phase) == ("text", None, "Unmask")

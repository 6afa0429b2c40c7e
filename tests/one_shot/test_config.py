"""Configurations that would be unsafe or inexact cannot be made; messages keep their limits."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import ClientId, MalformedMessageError, Phase
from protocols.one_shot.rules import least_noise_bits, least_threshold
from protocols.one_shot.wire import (
    Committee,
    MemberBundle,
    UnmaskRequest,
    decode,
    decode_contribution,
    limits,
)
from protocols.primitives.keys import CLASSICAL, SUITES, Suite
from protocols.wire import encode

from .game import NO_LIMIT, Game, members, random_vectors, round_config

ANY = round_config()


class TestOneShotConfig:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"round_id": bytes(31)}, "round_id"),
            ({"model": b""}, "model"),
            ({"binding": bytes(33)}, "binding"),
            ({"cohort": 1}, "cohort"),
            ({"cohort": 65_521}, "cohort"),
            ({"committee": members(2)}, "from 3"),
            ({"committee": (ClientId(3), ClientId(2), ClientId(4))}, "increase strictly"),
            ({"committee": (ClientId(2), ClientId(2), ClientId(4))}, "increase strictly"),
            ({"corrupt_holders": -1}, "corrupt_holders"),
            ({"corrupt_holders": 5}, "corrupt_holders"),
            ({"threshold": 3}, "from 4 to 5"),
            ({"threshold": 6}, "from 4 to 5"),
            ({"min_survivors": 1}, "min_survivors"),
            ({"min_survivors": 2}, "from corrupt_holders \\+ 2 = 3"),
            ({"min_survivors": 5}, "min_survivors"),
            ({"length": 0}, "length"),
            ({"length": 2**31 + 1}, "length"),
            ({"modulus_bits": 0}, "modulus_bits"),
            ({"modulus_bits": 25}, "from 1 to 24"),
            ({"suite": 0}, "suite must be one of"),
            ({"suite": 3}, "suite must be one of"),
        ],
    )
    def test_refuses(self, change: dict[str, object], named: str) -> None:
        with pytest.raises(ValueError, match=named):
            replace(ANY, **change)  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", [*ANY.__dataclass_fields__])
    def test_every_field_is_in_the_digest(self, name: str) -> None:
        others = {
            "round_id": bytes(32),
            "cohort": 5,
            "committee": members(6)[1:],
            "threshold": 5,
            "min_survivors": 4,
            "corrupt_holders": 0,
            "length": 6,
            "modulus_bits": 21,
            "model": bytes([1]) * 32,
            "binding": bytes([1]) * 32,
            "suite": 2,
        }
        assert replace(ANY, **{name: others[name]}).digest() != ANY.digest()  # type: ignore[arg-type]
        assert replace(ANY).digest() == ANY.digest()

    @given(st.integers(2, 65_520))
    def test_noise_bits_hold_the_errors(self, clients: int) -> None:
        """Ten standard deviations of the summed errors below half of 2^tau; with one bit less they do not fit."""
        tau = least_noise_bits(clients)
        reach = 10 * sqrt(20 * clients)
        assert 2**tau > 2 * reach
        assert 2 ** (tau - 1) <= 2 * reach + 4
        assert tau <= 19

    def test_published_noise_bits(self) -> None:
        assert [least_noise_bits(n) for n in (100, 1000, 10_000)] == [10, 12, 14]

    @given(st.integers(3, 200), st.data())
    def test_least_threshold(self, count: int, data: st.DataObject) -> None:
        corrupt = data.draw(st.integers(0, count - 1))
        least = least_threshold(members=count, corrupt=corrupt)
        assert 3 * least > 2 * count + corrupt
        assert least == 3 or 3 * (least - 1) <= 2 * count + corrupt
        assert least <= count


class TestWire:
    @pytest.mark.parametrize("suite", [1, 2])
    def test_requests_keep_their_limit(self, suite: int) -> None:
        """With the largest ids and serials that there are."""
        game = Game(round_config(4, suite=suite), random_vectors(4))
        game.advance(Phase.MASKED_INPUT)
        sizes = [len(event.data) for event in game.server.close_phase()]  # type: ignore[union-attr]
        assert max(sizes) + 4 * 4 + 5 * 16 <= game.server._rules.limits[UnmaskRequest]
        assert max(sizes) > 4 * 4096

    @pytest.mark.parametrize("suite", SUITES.values())
    def test_every_member_of_a_committee_fits(self, suite: Suite) -> None:
        key = bytes(suite.public_key_bytes)
        bundle = MemberBundle(member=2**31 - 1, serial=2**62 - 1, fresh=bytes(32), key=key, signature=bytes(64))
        frame = encode(Committee(context=bytes(32), sender=0, bundles=(bundle,) * 20), suite=suite)
        most = limits(cohort=2, committee=20, threshold=14, suite=suite)[Committee]
        assert len(frame) <= most
        assert decode(frame, Committee, suite=suite, limit=most).bundles == (bundle,) * 20

    def test_contributions_have_one_length(self) -> None:
        game = Game()
        game.advance(Phase.MASKED_INPUT)
        data = game.sent_by(ClientId(1))[0]
        frame = game.parse(data)
        assert [len(one) for one in frame.sealed] == [48, 48, 48, 4128, 4128]
        assert len(frame.vector) == 4 * (5 + 64)
        for changed in (data + b"\x00", data[:-1], b"\x00" + data, data[1:]):
            with pytest.raises(MalformedMessageError):
                game.parse(changed)
        with pytest.raises(MalformedMessageError, match="fewer"):
            decode_contribution(data, suite=CLASSICAL, limit=NO_LIMIT, sealed_bytes=[len(data)], vector_bytes=0)

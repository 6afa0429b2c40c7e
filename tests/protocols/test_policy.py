"""What a client refuses whatever the server proposes, and what it remembers."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import (
    BundlesSeen,
    ClientId,
    ClientPolicy,
    History,
    KeysAdvertised,
    PolicyRefusal,
    Record,
    SurvivorsSigned,
)
from protocols.primitives.keys import HYBRID
from tests.rounds import round_config

client_ids = st.integers(1, 8).map(ClientId)
models = st.sampled_from([bytes(32), b"\x01" * 32])
groups = st.frozensets(client_ids, max_size=8)
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(KeysAdvertised, round_id=models, serial=st.integers(1, 9)),
    st.builds(BundlesSeen, serials=st.dictionaries(client_ids, st.integers(1, 9), max_size=4)),
    st.builds(SurvivorsSigned, model=models, survivors=groups),
)


class TestHistory:
    @given(st.lists(records, max_size=12))
    def test_remembers_everything_it_was_told(self, told: list[Record]) -> None:
        history = History.of(told)
        advertised = [r for r in told if isinstance(r, KeysAdvertised)]
        seen = [r.serials for r in told if isinstance(r, BundlesSeen)]
        signed = [r for r in told if isinstance(r, SurvivorsSigned)]
        assert history.serial == max((r.serial for r in advertised), default=0)
        assert history.rounds == {r.round_id for r in advertised}
        everyone = {peer for serials in seen for peer in serials}
        assert dict(history.peers) == {peer: max(s[peer] for s in seen if peer in s) for peer in everyone}
        assert {model: list(sets) for model, sets in history.signed.items()} == {
            r.model: [x.survivors for x in signed if x.model == r.model] for r in signed
        }

    @given(st.lists(records, max_size=6), st.lists(records, max_size=6))
    def test_replaying_the_records_gives_the_same_memory(self, first: list[Record], second: list[Record]) -> None:
        step_by_step = History.of(first)
        for record in second:
            step_by_step = step_by_step.after(record)
        assert step_by_step == History.of([*first, *second])

    @given(st.lists(records, max_size=6), records)
    def test_an_old_history_is_not_changed_by_a_new_record(self, told: list[Record], record: Record) -> None:
        history, again = History.of(told), History.of(told)
        history.after(record)
        assert history == again

    @given(st.lists(records, max_size=12), st.data())
    def test_nothing_is_ever_forgotten(self, told: list[Record], data: st.DataObject) -> None:
        """Whatever a history refuses, it still refuses after more records."""
        policy = ClientPolicy(min_survivors=3, corrupt_holders=0)
        cut = data.draw(st.integers(0, len(told)))
        early, late = History.of(told[:cut]), History.of(told)
        serials, model, survivors = data.draw(st.tuples(st.dictionaries(client_ids, st.integers(1, 9)), models, groups))
        checks: list[Callable[[History], None]] = [
            lambda history: policy.check_bundles(serials, history),
            lambda history: policy.check_survivors(model, survivors, history),
            lambda history: policy.check_round(round_config(4, round_id=model), history),
        ]
        for check in checks:
            try:
                check(early)
            except PolicyRefusal:
                with pytest.raises(PolicyRefusal):
                    check(late)

    def test_a_record_that_it_does_not_know_is_not_skipped(self) -> None:
        with pytest.raises(AssertionError):
            History().after("a record of a newer version")  # type: ignore[arg-type]


class TestRound:
    POLICY = ClientPolicy(min_survivors=5, corrupt_holders=1)

    @pytest.mark.parametrize(
        ("min_survivors", "corrupt_holders", "suite"), [(1, 0, 2), (0, 0, 2), (-1, 0, 2), (3, -1, 2), (3, 0, 0)]
    )
    def test_policies_that_protect_nothing(self, min_survivors: int, corrupt_holders: int, suite: int) -> None:
        with pytest.raises(ValueError, match="must be at least"):
            ClientPolicy(min_survivors=min_survivors, corrupt_holders=corrupt_holders, suite=suite)

    @pytest.mark.parametrize(("floor", "suite", "refused"), [(2, 1, True), (2, 2, False), (1, 1, False), (1, 2, False)])
    def test_a_weaker_suite_is_refused(self, floor: int, suite: int, refused: bool) -> None:
        policy, config = replace(self.POLICY, suite=floor), round_config(6, threshold=5, corrupt_holders=1, suite=suite)
        if refused:
            with pytest.raises(PolicyRefusal, match=r"the round's suite is 1; .* at least 2"):
                policy.check_round(config, History())
        else:
            policy.check_round(config, History())

    def test_only_who_asks_for_it_gets_the_classical_suite(self) -> None:
        assert ClientPolicy(min_survivors=3, corrupt_holders=0).suite == HYBRID.number

    @pytest.mark.parametrize(
        ("min_survivors", "corrupt_holders", "refused"),
        [(5, 1, None), (6, 2, None), (4, 1, "min_survivors is 4"), (5, 0, "corrupt_holders is 0")],
    )
    def test_floors(self, min_survivors: int, corrupt_holders: int, refused: str | None) -> None:
        config = round_config(6, threshold=4 if min_survivors < 6 else 6, min_survivors=min_survivors,
                              corrupt_holders=corrupt_holders)  # fmt: skip
        if refused is None:
            self.POLICY.check_round(config, History())
        else:
            with pytest.raises(PolicyRefusal, match=f"{refused}; .* at least"):
                self.POLICY.check_round(config, History())

    def test_a_round_id_is_joined_once(self) -> None:
        config = round_config(6, threshold=5, corrupt_holders=1)
        history = History.of([KeysAdvertised(round_id=config.round_id, serial=1)])
        with pytest.raises(PolicyRefusal, match="used before"):
            self.POLICY.check_round(config, history)
        self.POLICY.check_round(round_config(6, threshold=5, corrupt_holders=1), history)


class TestCommittee:
    def test_only_the_pinned_one(self) -> None:
        policy = ClientPolicy(min_survivors=2, corrupt_holders=0, committee=bytes(32))
        policy.check_committee(bytes(32))
        with pytest.raises(PolicyRefusal, match=r"committee is 0100000000000000; .* pins 0000000000000000"):
            policy.check_committee(b"\x01" + bytes(31))

    def test_none_without_a_pin(self) -> None:
        with pytest.raises(PolicyRefusal, match="pins none"):
            ClientPolicy(min_survivors=2, corrupt_holders=0).check_committee(bytes(32))

    def test_a_pin_that_is_no_digest(self) -> None:
        with pytest.raises(ValueError, match="32 bytes, got 3"):
            ClientPolicy(min_survivors=2, corrupt_holders=0, committee=b"abc")


class TestBundles:
    @given(seen=st.dictionaries(client_ids, st.integers(1, 5)), shown=st.dictionaries(client_ids, st.integers(1, 6)))
    def test_only_newer_serials_pass(self, seen: dict[ClientId, int], shown: dict[ClientId, int]) -> None:
        policy = ClientPolicy(min_survivors=3, corrupt_holders=0)
        history = History.of([BundlesSeen(serials=seen)])
        old = {peer for peer, serial in shown.items() if serial <= seen.get(peer, 0)}
        if old:
            with pytest.raises(PolicyRefusal, match="seen before") as caught:
                policy.check_bundles(shown, history)
            assert caught.value.client_id in old
        else:
            policy.check_bundles(shown, history)


class TestDifferencing:
    @given(before=st.lists(groups, max_size=4), now=groups, floor=st.integers(2, 6), model=models)
    def test_equal_or_far_apart(
        self, before: list[frozenset[ClientId]], now: frozenset[ClientId], floor: int, model: bytes
    ) -> None:
        history = History.of([SurvivorsSigned(model=bytes(32), survivors=group) for group in before])
        close = model == bytes(32) and any(group != now and len(group ^ now) < floor for group in before)
        policy = ClientPolicy(min_survivors=floor, corrupt_holders=0)
        if close:
            with pytest.raises(PolicyRefusal, match=f"at least {floor} are needed"):
                policy.check_survivors(model, now, history)
        else:
            policy.check_survivors(model, now, history)
        ClientPolicy(min_survivors=floor, corrupt_holders=0, noised=True).check_survivors(model, now, history)

    def test_one_client_less_is_the_classical_attack(self) -> None:
        everyone = frozenset(ClientId(i) for i in range(1, 9))
        model = os.urandom(32)
        history = History.of([SurvivorsSigned(model=model, survivors=everyone)])
        policy = ClientPolicy(min_survivors=4, corrupt_holders=0)
        with pytest.raises(PolicyRefusal, match="differs in 1 clients"):
            policy.check_survivors(model, everyone - {ClientId(3)}, history)
        policy.check_survivors(model, everyone, history)
        policy.check_survivors(os.urandom(32), everyone - {ClientId(3)}, history)

"""The privacy statement: text and data say the same, and nothing that was not agreed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from secagg import (
    AggregationConfig,
    ClientLevel,
    NoPrivacy,
    RecordLevel,
    UnaccountableError,
    simulate,
    statement,
    statement_dict,
)

UNITS: dict[str, NoPrivacy | ClientLevel | RecordLevel] = {
    "none": NoPrivacy(clip_norm=1.0),
    "client": ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=3),
    "record": RecordLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=3, sampling_rate=0.125, records=800),
}


def config(unit: str, *, clients: int = 8, max_dropouts: int = 2, max_colluders: int = 1) -> AggregationConfig:
    return AggregationConfig.cross_silo(
        like={"w": np.zeros(10)}, clients=clients, max_dropouts=max_dropouts, max_colluders=max_colluders,
        privacy=UNITS[unit],
    )  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
class TestAllUnits:
    def test_text_and_data_agree(self, unit: str) -> None:
        subject = config(unit)
        text, facts = statement(subject, survivors=7), statement_dict(subject, survivors=7)
        for line in (*facts["hidden"], *facts["not_hidden"], *facts["assumptions"]):
            assert line in text
        assert f"{facts['unit']}: {facts['adjacency']}" in text
        assert "8 invited, 7 in the sum, at least 6" in text
        assert (facts["clients"], facts["survivors"]) == (8, 7)
        assert "at most 1 of 8 clients work with the server" in text

    def test_data_is_plain(self, unit: str) -> None:
        facts = statement_dict(config(unit))
        assert json.loads(json.dumps(facts)) == facts
        assert facts["config_digest"] == config(unit).digest().hex()

    def test_what_masking_never_hides_is_said(self, unit: str) -> None:
        text = statement(config(unit))
        for exposed in ("the sum itself", "who took part", "sizes and times"):
            assert exposed in text.partition("Not hidden")[2]

    def test_without_survivors_the_fewest_are_assumed(self, unit: str) -> None:
        assert statement(config(unit)) == statement(config(unit), survivors=6)


@pytest.mark.parametrize("unit", ["client", "record"])
class TestWithPrivacy:
    def test_names_budget_delta_and_every_rung(self, unit: str) -> None:
        subject = config(unit)
        text, facts = statement(subject, survivors=7), statement_dict(subject, survivors=7)
        assert "epsilon 4 at delta 1e-06 over 3 rounds" in text
        assert (facts["epsilon"], facts["delta"], facts["rounds"]) == (4.0, 1e-6, 3)
        ladder = subject.ladder(survivors=7)
        assert ladder is not None
        assert facts["ladder"] == ladder.to_dict()
        assert len(set(facts["ladder"].values())) == 5
        for value in facts["ladder"].values():
            assert text.count(f"{value:.3f}") == 1
        assert "infinite" not in text

    def test_rungs_are_of_the_rounds_and_survivors_asked_for(self, unit: str) -> None:
        one = statement_dict(config(unit), survivors=8, rounds=1)["ladder"]
        three = statement_dict(config(unit), survivors=6)["ladder"]
        assert all(one[rung] < three[rung] for rung in one)
        assert one["all_honest"] == one["after_dropout"]
        assert three["minus_colluders"] == three["guaranteed"]

    def test_spent_is_said_only_if_known(self, unit: str) -> None:
        assert "spent" not in statement(config(unit))
        assert "spent       epsilon 1.235" in statement(config(unit), spent=1.2345678)
        assert statement_dict(config(unit), spent=1.25)["spent"] == 1.25

    def test_sampling_is_an_assumption_only_where_it_is_used(self, unit: str) -> None:
        assumed = " ".join(statement_dict(config(unit))["assumptions"])
        assert ("rate 0.125, in secret" in assumed) == (unit == "record")
        assert ("no amplification is claimed" in assumed) == (unit == "client")

    def test_gradients_of_other_records_are_assumed_not_to_change(self, unit: str) -> None:
        """Whatever the rounding: integers bound a record's own part, floats decide about the rest."""
        assumed = " ".join(statement_dict(config(unit))["assumptions"])
        assert ("depends on no other record" in assumed) == (unit == "record")
        assert "integers alone" not in assumed

    def test_no_statement_about_a_round_that_is_void(self, unit: str) -> None:
        with pytest.raises(UnaccountableError):
            statement(config(unit), survivors=5)
        with pytest.raises(ValueError, match="survivors"):
            statement(config(unit), survivors=9)


class TestWithoutPrivacy:
    def test_infinity_is_said(self) -> None:
        text, facts = statement(config("none")), statement_dict(config("none"))
        assert "epsilon     infinite: no noise was added" in text
        assert math.isinf(facts["epsilon"])
        assert math.isinf(facts["spent"])
        assert facts["delta"] is None
        assert facts["ladder"] is None
        assert "anything about one client that can be computed from the exact sum" in text.partition("Not hidden")[2]
        assert "budget" not in text

    def test_two_clients_hide_nothing_from_each_other(self) -> None:
        subject = config("none", clients=2, max_dropouts=0, max_colluders=0)
        updates = {1: {"w": np.full(10, 0.1)}, 2: {"w": np.full(10, 0.2)}}
        result = simulate(updates, subject)
        exposed = result.statement().partition("Not hidden")[2]
        assert "from either of the two clients, nothing of the other's update" in exposed
        # It is so: the other's update is the mean, twice, minus one's own.
        np.testing.assert_allclose(2 * result.mean["w"] - updates[1]["w"], updates[2]["w"], atol=1e-6)
        assert "two clients" not in statement(config("none", clients=3, max_dropouts=0))

    @pytest.mark.parametrize("clients", [3, 4, 8])
    def test_colluders_who_are_all_the_others_see_the_last_one(self, clients: int) -> None:
        """n - 1 colluders is a legal claim without noise, but then the sum hides nobody from them."""
        facts = statement_dict(config("none", clients=clients, max_dropouts=0, max_colluders=clients - 1))
        assert any("the one other client's update" in line for line in facts["not_hidden"])
        assert facts["hidden"] != statement_dict(config("none", clients=clients, max_dropouts=0))["hidden"]
        almost = statement_dict(config("none", clients=clients, max_dropouts=0, max_colluders=clients - 2))
        assert not any("the one other client's update" in line for line in almost["not_hidden"])


@pytest.mark.parametrize("unit", UNITS)
def test_a_result_states_its_own_round(unit: str) -> None:
    subject = config(unit)
    shape = (2, 10) if unit == "record" else (10,)
    result = simulate({client: {"w": np.zeros(shape)} for client in range(1, 9)}, subject, drop={4})
    facts = result.to_dict()
    assert result.statement() == statement(subject, survivors=7, spent=result.epsilon)
    assert facts["statement"] == statement_dict(subject, survivors=7, spent=result.epsilon)
    assert facts["survivors"] == [1, 2, 3, 5, 6, 7, 8]
    assert facts["dropouts"] == 1
    assert bytes.fromhex(str(facts["transcript"])) == result.transcript
    if unit == "none":
        assert facts["ladder"] is None
        assert math.isinf(result.epsilon)
    else:
        assert result.ladder is not None
        assert facts["ladder"] == result.ladder.to_dict()
        assert result.epsilon == pytest.approx(result.ladder.minus_colluders)
    json.dumps(facts)

"""Computed sizes are those of real messages, byte by byte."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import secagg
from benchmarks.__main__ import main
from benchmarks.one_shot_sizes import count_one_shot
from benchmarks.sizes import count
from protocols import ClientId, History, KeysAdvertised, Phase
from protocols.one_shot import OneTimeKey
from protocols.primitives.keys import HYBRID, SUITES, Suite
from secagg import AggregationConfig, NoPrivacy, Simulation
from tests.one_shot import game as one_shot
from tests.rounds import Round, kind_of, random_vectors, round_config

SCHEMA = json.loads((Path(secagg.__file__).parent / "schema.json").read_text())
NOT_IN_A_SESSION = {"Invitation", "total"}  # invitations are written by `secagg.Server`


def test_prints_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sizes", "--clients", "8", "--dimension", "2000", "--bits", "16", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sorted(facts) == sorted(SCHEMA["benchmarks sizes"])
    assert facts["vector_bytes"] == 4000
    assert facts["overhead_percent"] == pytest.approx(100 * (facts["upload"]["total"] - 4000) / 4000)
    assert facts["ratio_to_float32"] == facts["upload"]["total"] / 8000
    for way in ("upload", "download"):
        assert facts[way].pop("total") == sum(facts[way].values())


@pytest.mark.parametrize(("clients", "bits"), [(3, 32), (20, 16), (20, 21)])
def test_uploads_are_those_that_reach_the_server_of_a_simulation(clients: int, bits: int) -> None:
    config = AggregationConfig.cross_silo(
        like={"w": np.zeros(1001)},
        clients=clients,
        max_dropouts=0,
        max_colluders=0,
        privacy=NoPrivacy(clip_norm=1.0),
        modulus_bits=bits,
    )
    sent: Counter[int] = Counter()

    def tap(client: int, _phase: Phase, data: bytes) -> None:
        sent[client] += len(data)

    updates = {client: {"w": np.full(1001, 1e-3)} for client in range(1, clients + 1)}
    Simulation(config, clients=updates).round(updates, tap=tap)
    expected = count(clients=clients, dimension=1001, degree=None, bits=bits, suite=HYBRID)["upload"]["total"]
    assert sent == dict.fromkeys(updates, expected)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: f"suite{suite.number}")
@pytest.mark.parametrize(("cohort", "degree"), [(12, None), (131, None), (131, 6)])
def test_every_message_of_a_real_round_has_its_size(cohort: int, degree: int | None, suite: Suite) -> None:
    """The last client of 131 has an id of two bytes; in a ring of 131, some of its neighbours have shorter ones."""
    parties = Round(round_config(cohort, degree=degree, length=10, suite=suite.number), random_vectors(cohort, 10))
    parties.run()
    last = max(parties.clients)
    sizes = count(clients=cohort, dimension=10, degree=degree, bits=32, suite=suite)
    sent = {kind_of(data).__name__: len(data) for client, _, data in parties.sent if client == last}
    assert sent == {name: size for name, size in sizes["upload"].items() if name != "total"}
    received = {kind_of(data).__name__: len(data) for client, data in parties.received if client == last}
    expected = {name: size for name, size in sizes["download"].items() if name not in NOT_IN_A_SESSION}
    shorter_ids = expected.pop("SurvivorSignatures") - received.pop("SurvivorSignatures")
    assert received == expected
    assert shorter_ids == 0 if degree is None else 0 <= shorter_ids <= degree


def test_an_invitation_has_its_size() -> None:
    config = AggregationConfig.cross_silo(
        like={"w": np.zeros(5)}, clients=3, max_dropouts=0, max_colluders=0, privacy=NoPrivacy(clip_norm=1.0)
    )
    invitations = Simulation(config, clients=range(1, 4))._server.begin()
    expected = count(clients=3, dimension=5, degree=None, bits=32, suite=HYBRID)["download"]["Invitation"]
    assert [len(message.data) for message in invitations] == [expected] * 3


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: f"suite{suite.number}")
@pytest.mark.parametrize("cohort", [12, 131])
def test_every_message_of_a_real_one_shot_round_has_its_size(cohort: int, suite: Suite) -> None:
    facts = count_one_shot(clients=cohort, dimension=10, members=5, bits=20, suite=suite)
    committee = tuple(ClientId(cohort + i) for i in range(1, 6))
    config = one_shot.round_config(
        cohort, committee=committee, length=10, modulus_bits=20, min_survivors=cohort, suite=suite.number
    )
    sent: dict[tuple[bool, ClientId], list[int]] = {}

    def network(sender: ClientId | None, receiver: ClientId | None, data: bytes) -> list[bytes]:
        sent.setdefault((sender is None, sender or receiver or ClientId(0)), []).append(len(data))
        return [data]

    draft = one_shot.Game(config, one_shot.random_vectors(cohort, 10, 20))
    member = committee[-1]
    later = History().after(KeysAdvertised(round_id=bytes(32), serial=1))
    next_key = OneTimeKey(member, identity=draft.identities[member], roster=draft.roster, suite=suite, history=later)
    one_shot.Game(config, draft.vectors, network, draft.identities, next_keys={member: next_key}).run()
    assert sent[False, ClientId(cohort)] == [facts["upload"]["Contribution"]]
    assert sent[True, ClientId(cohort)] == [facts["download"]["Committee"]]
    assert sent[False, member] == [*facts["member_upload"].values()]
    assert sent[True, member] == [facts["member_download"]["UnmaskRequest"]]


def test_one_shot_prints_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sizes", "--protocol", "one_shot", "--suite", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sorted(facts) == sorted(SCHEMA["benchmarks sizes --protocol one_shot"])
    assert facts["overhead_percent"] == pytest.approx(100 * (facts["upload"]["Contribution"] - 4e6) / 4e6)
    assert facts["overhead_percent"] < 1.2
    assert main(["sizes", "--protocol", "one_shot", "--degree", "4"]) == 2


def test_rounds_that_do_not_exist_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sizes", "--clients", "20", "--degree", "7"]) == 2
    assert "degree must be even" in capsys.readouterr().err

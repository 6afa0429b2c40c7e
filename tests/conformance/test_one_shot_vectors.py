"""Every file of `tests/vectors/one_shot`: the live code agrees, and so does an implementation of the specification."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain, product
from math import comb
from typing import Any

import pytest

from benchmarks import lattice
from protocols import (
    AggregateReady,
    ClientId,
    PeerRejected,
    Phase,
    ProtocolError,
    RemoteProtocolError,
    SendMessage,
    errors,
)
from protocols.one_shot.rules import CLIENT_TRANSITIONS, MEMBER_TRANSITIONS, SERVER_TRANSITIONS, least_threshold
from protocols.one_shot.wire import decode
from protocols.primitives.keys import CLASSICAL
from tests.vectors import one_shot_rounds
from tests.vectors.live import Case, Script, Tape
from tests.vectors.one_shot_live import (
    CLIENT_MESSAGES,
    KINDS,
    MEMBER_MESSAGES,
    SERVER_MESSAGES,
    client_of,
    config_of,
    frames_after,
    line,
    member_of,
    play,
    server_of,
)

from . import one_shot_from_spec as from_spec
from .from_spec import Refused
from .one_shot_from_spec import HonestRound

FILES: dict[str, Script] = {
    path.stem: json.loads(path.read_text()) for path in sorted(one_shot_rounds.DIRECTORY.iterdir())
}
ROUNDS = {name: content for name, content in FILES.items() if content["group"] == "round"}
SUMS = {name: content for name, content in ROUNDS.items() if content["success"]}
GARBLES = {"bad_round_complaint": {2: [102]}}
every_round = pytest.mark.parametrize("name", ROUNDS)
every_sum = pytest.mark.parametrize("script", SUMS.values(), ids=SUMS)
# In the order of a round: what arrives at the server in each phase.
PHASES = ("MemberKeys", "Contribution", "PartialSum")


def cases(group: str) -> pytest.MarkDecorator:
    """All cases of the files of one group."""
    listed = [(name, case) for name, content in FILES.items() if content["group"] == group for case in content["cases"]]
    found = {": ".join(filter(None, (name, case.get("message"), case["comment"]))): case for name, case in listed}
    assert len(found) == len(listed) > 0
    return pytest.mark.parametrize("case", found.values(), ids=found)


def error_class(name: str) -> type[Exception]:
    return ValueError if name == "ValueError" else getattr(errors, name)


def sent(script: Mapping[str, Any], *, kind: str, sender: int = 0, receiver: int = 0) -> bytes:
    wanted = (sender, receiver, kind)
    return next(bytes.fromhex(m["bytes"]) for m in script["messages"] if (m["from"], m["to"], m["kind"]) == wanted)


def senders(script: Mapping[str, Any], kind: str) -> list[int]:
    return [m["from"] for m in script["messages"] if m["kind"] == kind]


def tape(script: Mapping[str, Any], group: str, party: int) -> Tape:
    return Tape(bytes.fromhex(script[group][str(party)]["rand"]))


class TestFiles:
    def test_groups_are_known(self) -> None:
        assert {content["group"] for content in FILES.values()} == {
            "round", "encoding", "config", "client", "member", "complaint", "server", "abort",
        }  # fmt: skip

    def test_bad_files_say_so(self) -> None:
        for name, content in FILES.items():
            assert content["success"] == (not name.startswith("bad_"))
            assert content["success"] or content["group"] == "round" or all(case["error"] for case in content["cases"])

    def test_rounds_cover_what_they_should(self) -> None:
        assert {script["config"]["suite"] for script in SUMS.values()} == {1, 2}
        kinds = {message["kind"] for script in ROUNDS.values() for message in script["messages"]}
        assert kinds == {kind.__name__ for kind in (*CLIENT_MESSAGES, *MEMBER_MESSAGES, *SERVER_MESSAGES)}
        assert any(own.get("next_rand") for script in SUMS.values() for own in script["members"].values())
        assert any(set(script["clients"]) & set(script["members"]) for script in SUMS.values())
        assert {(g, n) for script in SUMS.values() for g, s in script["silent"].items() for n in s.values()} == {
            ("clients", 0), ("members", 1),
        }  # fmt: skip
        assert any(script["config"]["length"] + 64 > 2048 for script in SUMS.values())

    def test_every_error_of_clients_and_members_occurs(self) -> None:
        listed = [content["cases"] for content in FILES.values() if content["group"] in ("client", "member")]
        assert {case["error"] for case in chain.from_iterable(listed)} == {
            "MalformedMessageError", "InvalidSignatureError", "InconsistentViewError", "TooFewClientsError",
            "PolicyRefusal",
        }  # fmt: skip


class TestRounds:
    @every_round
    def test_live(self, name: str) -> None:
        """Every byte that leaves anybody, how many random bytes it takes, and how it ends."""
        script = ROUNDS[name]
        garbles = [one_shot_rounds.garbling(client, *members) for client, members in GARBLES.get(name, {}).items()]
        played = play(script, meddle=garbles[0]) if garbles else play(script)
        assert played.messages == script["messages"]
        assert all(one.used == len(one.data) for tapes in played.tapes.values() for one in tapes.values())
        assert not played.rejected
        if script["success"]:
            assert played.result is not None
            assert played.result.vector.tolist() == script["result"]
            assert sorted(played.result.survivors) == script["survivors"]
            assert played.result.transcript.hex() == script["transcript"]
        else:
            assert type(played.error).__name__ == script["error"]
            assert played.error is not None
            assert played.error.phase == script["phase"]
            assert [list(pair) for pair in played.error.pairs] == script["pairs"]  # type: ignore[attr-defined]

    @every_sum
    def test_the_result_is_the_plain_sum(self, script: Script) -> None:
        vectors = [script["clients"][str(client)]["vector"] for client in script["survivors"]]
        modulus = 2 ** script["config"]["modulus_bits"]
        assert script["result"] == [sum(column) % modulus for column in zip(*vectors, strict=True)]

    @every_round
    def test_specification(self, name: str) -> None:
        """An implementation from the text alone gives the same digests, challenges, frames, sum and transcript."""
        script = ROUNDS[name]
        independent = HonestRound(script, GARBLES.get(name, {})).play()
        challenges = independent.derived.pop("challenge")
        assert {client: digest.hex() for client, digest in challenges.items()} == script["derived"]["challenge"]
        assert {key: digest.hex() for key, digest in independent.derived.items()} == {
            key: digest for key, digest in script["derived"].items() if key != "challenge"
        }
        found = [line(a, b, frame) for a, b, _, frame in independent.messages]
        assert [(m["from"], m["to"], m["kind"]) for m in found] == [
            (m["from"], m["to"], m["kind"]) for m in script["messages"]
        ]
        assert found == script["messages"]
        if script["success"]:
            assert independent.survivors == script["survivors"]
            assert independent.result == script["result"]
            assert independent.transcript.hex() == script["transcript"]
            assert not independent.pairs
        else:
            assert independent.pairs == script["pairs"]
            assert not independent.result

    @every_round
    def test_specification_of_messages_and_signatures(self, name: str) -> None:
        """Every frame reads as section 12 says; which bytes each signature covers."""
        script = ROUNDS[name]
        independent, suite = HonestRound(script), script["config"]["suite"]
        members = len(script["config"]["committee"])
        for message in script["messages"]:
            frame, kind = bytes.fromhex(message["bytes"]), message["kind"]
            body = frame
            if kind == "Contribution":
                extra = 16 + (1088 if suite == 2 else 0)
                threshold = script["config"]["threshold"]
                seeds = threshold - 1
                behind = (
                    seeds * (32 + extra) + (members - seeds) * (4112 + extra) + 4 * (script["config"]["length"] + 64)
                )
                body = frame[: -behind - 64]
            elif kind in ("PartialSum", "Complaint"):
                body = frame[:-64]
            if body != frame:
                signature = frame[len(body) : len(body) + 64]
                from_spec.check_signature(independent.roster[message["from"]], kind, body, signature)
            values = from_spec.decode(kind, body, suite=suite)
            assert values[1] == message["from"]
            assert from_spec.encode(kind, *values, suite=suite) == body


class TestRefused:
    @cases("encoding")
    def test_encodings(self, case: Case) -> None:
        data = bytes.fromhex(case["bytes"])
        with pytest.raises(error_class(case["error"])):
            decode(data, KINDS[case["message"]], suite=CLASSICAL, limit=10**6)
        with pytest.raises(Refused):
            from_spec.decode(case["message"], data)

    @cases("config")
    def test_configs(self, case: Case) -> None:
        script = {**ROUNDS[case["round"]]}
        server_of(script)
        script["config"] = {**script["config"], **case["config"]}
        with pytest.raises(ValueError) as caught:
            server_of(script)
        assert type(caught.value).__name__ == case["error"]

    @cases("client")
    def test_clients(self, case: Case) -> None:
        """A real client that gets these bytes ends in this error and answers nothing."""
        script, client = ROUNDS[case["round"]], ClientId(case["client"])
        if case["message"] is None:
            with pytest.raises(ProtocolError) as caught:
                client_of(script, client, tape(script, "clients", client), case=case)
            assert type(caught.value).__name__ == case["error"]
            return
        session = client_of(script, client, tape(script, "clients", client), case=case)
        assert frames_after(session, session.start(), []) == []
        assert (session.phase, case["message"]) in CLIENT_TRANSITIONS
        with pytest.raises(ProtocolError) as caught:
            session.receive(bytes.fromhex(case["bytes"]))
        assert type(caught.value).__name__ == case["error"]
        assert session.phase is Phase.ABORTED
        assert session._secrets is None

    @cases("member")
    def test_members(self, case: Case) -> None:
        script, member = ROUNDS[case["round"]], ClientId(case["member"])
        session = member_of(script, member, tape(script, "members", member), case=case)
        assert frames_after(session, session.start(), []) == [sent(script, kind="MemberKeys", sender=member)]
        assert (session.phase, "UnmaskRequest") in MEMBER_TRANSITIONS
        with pytest.raises(ProtocolError) as caught:
            session.receive(bytes.fromhex(case["bytes"]))
        assert type(caught.value).__name__ == case["error"]
        assert session.phase is Phase.ABORTED
        assert session._secrets is None

    @cases("complaint")
    def test_complaints(self, case: Case) -> None:
        """The member says who, in these bytes, and has nothing left."""
        script, member = ROUNDS[case["round"]], ClientId(case["member"])
        session = member_of(script, member, tape(script, "members", member), case=case)
        frames_after(session, session.start(), [])
        *rejected, sending = session.receive(bytes.fromhex(case["bytes"]))
        assert [event.client for event in rejected if isinstance(event, PeerRejected)] == case["accused"]
        assert isinstance(sending, SendMessage)
        assert sending.data.hex() == case["answer"]
        assert session.phase is Phase.FINISHED
        assert session._secrets is None

    @cases("server")
    def test_servers(self, case: Case) -> None:
        """The bad message is rejected for this reason; the good one is still taken, and the sum is right."""
        script = ROUNDS[case["round"]]
        server, result = server_of(script), None
        for kind in PHASES:
            if kind == case["message"]:
                handlers = {
                    "MemberKeys": server._take_keys,
                    "Contribution": server._take_contribution,
                    "PartialSum": server._take_answer,
                }
                for sender in senders(script, kind):
                    if sender != case["sender"]:
                        assert server.receive(ClientId(sender), sent(script, kind=kind, sender=sender)) == []
                bad = ClientId(case["sender"]), bytes.fromhex(case["bytes"])
                if case["sender"] in server.waiting_for:
                    with pytest.raises(RemoteProtocolError) as caught:
                        handlers[kind](*bad)
                    assert type(caught.value).__name__ == case["error"]
                (rejected,) = server.receive(*bad)
                assert isinstance(rejected, PeerRejected)
                assert rejected.client == case["sender"]
            for sender in senders(script, kind):
                if ClientId(sender) in server.waiting_for:
                    assert server.receive(ClientId(sender), sent(script, kind=kind, sender=sender)) == []
            for event in server.close_phase():
                result = event if isinstance(event, AggregateReady) else result
        assert result is not None
        assert result.vector.tolist() == script["result"]

    @cases("abort")
    def test_rounds(self, case: Case) -> None:
        """Nobody's message is rejected, but when the phase is closed there is no sum."""
        script = ROUNDS[case["round"]]
        replaced = {(kind, sender): frame for kind, sender, frame in case["replaced"]}
        server = server_of(script)
        for kind, (phase, _) in zip(PHASES, SERVER_TRANSITIONS, strict=True):
            for sender in senders(script, kind):
                frame = replaced.pop((kind, sender), sent(script, kind=kind, sender=sender).hex())
                if frame is not None:
                    assert server.receive(ClientId(sender), bytes.fromhex(frame)) == []
            if phase.value == case["phase"]:
                break
            server.close_phase()
        assert not replaced
        with pytest.raises(ProtocolError) as caught:
            server.close_phase()
        assert type(caught.value).__name__ == case["error"]
        assert caught.value.phase == case["phase"]
        assert [list(pair) for pair in getattr(caught.value, "pairs", ())] == case.get("pairs", [])
        assert server.phase is Phase.ABORTED


class TestText:
    """Figures and formulas of the specification."""

    def test_the_threshold(self) -> None:
        for members, corrupt in product(range(3, 30), range(30)):
            if corrupt < members:
                ours = least_threshold(members=members, corrupt=corrupt)
                assert from_spec.least_threshold(members, corrupt) == ours

    def test_bounds(self) -> None:
        for script in SUMS.values():
            config = config_of(script)
            tau = (2 * from_spec.bound(config.cohort)).bit_length()
            assert config.noise_bits >= tau

    def test_the_table_of_costs_is_what_the_benchmark_prints(self) -> None:
        rows = [
            f"| {row['degree']} | {row['modulus_bits']} | {row['deviation']:.2f} | {row['block']} | "
            f"{row['classical_bits']} | {row['quantum_bits']} |"
            for row in lattice.facts()["rows"]
        ]
        assert "\n".join(rows) in (one_shot_rounds.DIRECTORY.parents[2] / "protocols" / "SPEC.md").read_text()

    @pytest.mark.parametrize(("total", "variance"), [(0, 10.06), (20, 9.43)])
    def test_what_a_known_sum_leaves_of_a_binomial_key(self, total: int, variance: float) -> None:
        """Of 160 bits, 80 + S ones: how many are among the first 80. By enumeration."""
        ones = 80 + total
        weights = {k: comb(80, k) * comb(80, ones - k) for k in range(max(0, ones - 80), 81)}
        mean = sum(k * w for k, w in weights.items()) / sum(weights.values())
        found = sum((k - mean) ** 2 * w for k, w in weights.items()) / sum(weights.values())
        assert mean == pytest.approx(ones / 2)
        assert round(found, 2) == variance

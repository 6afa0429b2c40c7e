"""Every file of `tests/vectors/pairwise`: the live code agrees, and so does an implementation of the specification.

A file of an unknown group, a group without a test, or a file that the generator does not write is a failure.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from protocols import (
    AggregateReady,
    ClientId,
    PairwiseServer,
    PeerRejected,
    Phase,
    ProtocolError,
    RemoteProtocolError,
    errors,
    required_threshold,
)
from protocols.session import CLIENT_TRANSITIONS, SERVER_TRANSITIONS
from tests.classical import decode, message_limit
from tests.vectors import generate
from tests.vectors.live import (
    CLIENT_MESSAGES,
    KINDS,
    SERVER_MESSAGES,
    Case,
    Script,
    Tape,
    client_of,
    config_of,
    frames_after,
    line,
    play,
    roster_of,
    server_of,
)

from . import from_spec
from .from_spec import HonestRound, Refused

FILES: dict[str, Script] = {
    path.stem: json.loads(path.read_text()) for path in sorted(generate.DIRECTORY.iterdir()) if path.suffix == ".json"
}
ROUNDS = {name: content for name, content in FILES.items() if content["group"] == "round"}
SUMS = {name: content for name, content in ROUNDS.items() if content["success"]}
every_round = pytest.mark.parametrize("script", ROUNDS.values(), ids=ROUNDS)
every_sum = pytest.mark.parametrize("script", SUMS.values(), ids=SUMS)


def cases(group: str) -> pytest.MarkDecorator:
    """All cases of the files of one group."""
    listed = [(name, case) for name, content in FILES.items() if content["group"] == group for case in content["cases"]]
    found = {": ".join(filter(None, (name, case.get("message"), case["comment"]))): case for name, case in listed}
    assert len(found) == len(listed) > 0
    return pytest.mark.parametrize("case", found.values(), ids=found)


def error_class(name: str) -> type[Exception]:
    return ValueError if name == "ValueError" else getattr(errors, name)


def sent(script: Script, *, kind: str, sender: int = 0, receiver: int = 0) -> bytes:
    wanted = (sender, receiver, kind)
    return next(bytes.fromhex(m["bytes"]) for m in script["messages"] if (m["from"], m["to"], m["kind"]) == wanted)


def senders(script: Script, kind: str) -> list[int]:
    return [m["from"] for m in script["messages"] if m["kind"] == kind]


class TestFiles:
    def test_groups_are_known(self) -> None:
        assert {content["group"] for content in FILES.values()} == {
            "round", "encoding", "config", "client", "server", "abort",
        }  # fmt: skip

    def test_bad_files_say_so(self) -> None:
        for name, content in FILES.items():
            assert content["success"] == (not name.startswith("bad_"))
            assert content["success"] or content["group"] == "round" or all(case["error"] for case in content["cases"])

    def test_are_what_the_generator_writes(self, tmp_path: Path) -> None:
        generate.main(tmp_path)
        for protocol in ("pairwise", "one_shot"):
            written = {path.name: path.read_text() for path in (tmp_path / protocol).iterdir()}
            kept = generate.DIRECTORY.parent / protocol
            assert {path.name: path.read_text() for path in kept.iterdir()} == written

    def test_rounds_cover_what_they_should(self) -> None:
        """Both graphs, both suites, all word widths, every message, all places but one where a client can vanish."""
        configs = [script["config"] for script in SUMS.values()]
        assert {config["degree"] == config["cohort"] - 1 for config in configs} == {True, False}
        assert {config["modulus_bits"] for config in configs} == {12, 16, 32}
        assert {config["suite"] for config in configs} == {1, 2}
        assert {config.get("removable", 0) > 0 for config in configs} == {True, False}
        assert {count for script in SUMS.values() for count in script["silent"].values()} == {1, 2, 3}
        kinds = {message["kind"] for script in SUMS.values() for message in script["messages"]}
        assert kinds == {kind.__name__ for kind in (*CLIENT_MESSAGES, *SERVER_MESSAGES)}


class TestRounds:
    @every_round
    def test_live(self, script: Script) -> None:
        """Every byte that leaves anybody, how many random bytes it takes, and how it ends."""
        played = play(script)
        assert played.messages == script["messages"]
        assert all(tape.used == len(tape.data) for tape in played.tapes.values())
        if script["success"]:
            assert played.result is not None
            assert played.result.vector.tolist() == script["result"]
            assert sorted(played.result.survivors) == script["survivors"]
            assert played.result.transcript.hex() == script["transcript"]
            removed = {str(c): [seed.hex() for seed in seeds] for c, seeds in played.result.removed.items()}
            assert removed == script.get("removed", {})
        else:
            assert type(played.error).__name__ == script["error"]
            assert played.error is not None
            assert played.error.phase == script["phase"]

    @every_sum
    def test_the_result_is_the_plain_sum(self, script: Script) -> None:
        vectors = [script["vectors"][str(client)] for client in script["survivors"]]
        modulus = 2 ** script["config"]["modulus_bits"]
        assert script["result"] == [sum(column) % modulus for column in zip(*vectors, strict=True)]

    @every_round
    def test_specification(self, script: Script) -> None:
        """An implementation from the text alone gives the same digests, keys, frames, sum and transcript."""
        independent = HonestRound(script).play()
        holders = independent.derived.pop("holders")
        assert {str(client): there for client, there in holders.items()} == script["derived"]["holders"]
        for name, digest in independent.derived.items():
            assert digest.hex() == script["derived"][name], name
        assert len(independent.derived) + 1 == len(script["derived"])
        for usage, values in independent.keys.items():
            assert {ids: key.hex() for ids, key in values.items()} == script["keys"][usage], usage
        assert independent.keys.keys() == script["keys"].keys()
        assert [line(a, b, frame) for a, b, _, frame in independent.messages] == script["messages"]
        assert [kind for _, _, kind, _ in independent.messages] == [m["kind"] for m in script["messages"]]
        assert independent.fails != script["success"]
        if script["success"]:
            assert independent.survivors == script["survivors"]
            assert independent.result == script["result"]
            assert independent.transcript.hex() == script["transcript"]
            removed = {str(client): [seed.hex() for seed in seeds] for client, seeds in independent.removed.items()}
            assert removed == script.get("removed", {})

    @every_round
    def test_specification_of_signatures(self, script: Script) -> None:
        """Which bytes each signature covers: with one bit more or less it fails."""
        tail = from_spec.Lanes(script["config"]["modulus_bits"], script["config"]["length"])
        independent = HonestRound(script)
        checked = 0
        for message in script["messages"]:
            if message["to"] or message["kind"] == "AdvertiseKeys":
                continue
            covered, signature = (frame := bytes.fromhex(message["bytes"]))[:-64], frame[-64:]
            from_spec.check_signature(independent.roster[message["from"]], message["kind"], covered, signature)
            body = (
                covered[: len(covered) - tail.words * tail.word_bytes] if message["kind"] == "MaskedInput" else covered
            )
            removable = independent.removable
            said = from_spec.decode(message["kind"], body, suite=independent.suite, removable=removable)
            assert said[1] == message["from"]
            checked += 1
        assert checked == sum(script["silent"].get(c, 5) - 1 for c in script["vectors"]) - (
            0 if script["success"] else 2  # nobody is asked to unmask
        )

    @every_round
    def test_specification_of_unsigned_messages(self, script: Script) -> None:
        suite, removable = script["config"]["suite"], script["config"].get("removable", 0)
        for message in script["messages"]:
            if message["to"] or message["kind"] == "AdvertiseKeys":
                frame = bytes.fromhex(message["bytes"])
                values = from_spec.decode(message["kind"], frame, suite=suite, removable=removable)
                assert from_spec.encode(message["kind"], *values, suite=suite) == frame


def test_specification_of_the_threshold() -> None:
    for holders in range(2, 40):
        for corrupt in range(holders):
            ours = required_threshold(holders=holders, corrupt_holders=corrupt)
            assert from_spec.required_threshold(holders, corrupt) == ours
            assert holders == 2 or 2 * ours > holders + corrupt


class TestRefused:
    @cases("encoding")
    def test_encodings(self, case: Case) -> None:
        data = bytes.fromhex(case["bytes"])
        with pytest.raises(error_class(case["error"])):
            decode(data, KINDS[case["message"]], limit=message_limit(10))
        with pytest.raises(Refused):
            from_spec.decode(case["message"], data)

    @cases("config")
    def test_configs(self, case: Case) -> None:
        script = {**ROUNDS[case["round"]]}
        server_of(script)
        script["config"] = {**script["config"], **case.get("config", {})}
        script["identities"] = case.get("identities", script["identities"])
        with pytest.raises(ValueError) as caught:
            PairwiseServer(config_of(script), roster=roster_of(script))
        assert type(caught.value).__name__ == case["error"]

    @cases("client")
    def test_clients(self, case: Case) -> None:
        """A real client, fed with honest messages up to the bad one, ends in this error and answers nothing."""
        script, client = ROUNDS[case["round"]], ClientId(case["client"])
        rand = Tape(bytes.fromhex(script["rand"][str(client)]))
        if case["message"] is None:
            with pytest.raises(ProtocolError) as caught:
                client_of(script, client, rand, case=case)
            assert type(caught.value).__name__ == case["error"]
            return
        session, vector = client_of(script, client, rand, case=case), script["vectors"][str(client)]
        frames = frames_after(session, session.start(), vector)
        for kind in SERVER_MESSAGES:
            if kind.__name__ == case["message"]:
                break
            good = sent(script, kind=kind.__name__, receiver=client)
            frames += frames_after(session, session.receive(good), vector)
        assert frames == [
            sent(script, kind=kind_of, sender=client) for kind_of in names(CLIENT_MESSAGES)[: len(frames)]
        ]
        assert (session.phase, case["message"]) in CLIENT_TRANSITIONS
        with pytest.raises(ProtocolError) as caught:
            session.receive(bytes.fromhex(case["bytes"]))
        assert type(caught.value).__name__ == case["error"]
        assert session.phase is Phase.ABORTED
        assert session._secrets is None

    @cases("server")
    def test_servers(self, case: Case) -> None:
        """The bad message is rejected for this reason; the good one of the same client is still taken, and the sum is
        right.
        """
        script = ROUNDS[case["round"]]
        server, result = server_of(script), None
        for kind in names(CLIENT_MESSAGES):
            if kind == case["message"]:
                handlers = (
                    server._take_keys,
                    server._take_sealed,
                    server._take_masked,
                    server._take_signature,
                    server._take_shares,
                )
                handler = handlers[names(CLIENT_MESSAGES).index(kind)]
                others = [sender for sender in senders(script, kind) if sender != case["sender"]]
                for sender in others:
                    assert server.receive(ClientId(sender), sent(script, kind=kind, sender=sender)) == []
                bad = ClientId(case["sender"]), bytes.fromhex(case["bytes"])
                if case["sender"] in server.waiting_for:
                    with pytest.raises(RemoteProtocolError) as caught:
                        handler(*bad)
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
        for kind, (phase, _) in zip(names(CLIENT_MESSAGES), SERVER_TRANSITIONS, strict=True):
            for sender in senders(script, kind):
                good = sent(script, kind=kind, sender=sender).hex()
                frame = replaced.pop((kind, sender), good)
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
        assert server.phase is Phase.ABORTED


def names(kinds: tuple[type[Any], ...]) -> list[str]:
    return [kind.__name__ for kind in kinds]


def test_every_client_side_error_occurs_in_the_files() -> None:
    listed = chain.from_iterable(content["cases"] for content in FILES.values() if content["group"] == "client")
    assert {case["error"] for case in listed} == {
        "MalformedMessageError", "InvalidSignatureError", "InconsistentViewError", "RemoteProtocolError",
        "TooFewClientsError", "PolicyRefusal",
    }  # fmt: skip

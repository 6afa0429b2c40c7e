"""What a run tells: every moment once, to everybody who listens, with counts that are true and no client's name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import secagg
from protocols import Phase
from secagg.callbacks import AbortRecord, Callback, Callbacks, RoundRecord
from secagg.simulation import SERVER_PHASES
from secagg.trackers import JsonLines, Metrics, Prometheus, Scalars
from secagg.training import train

from .parties import Parties, plain_config, private_config, updates_for
from .test_training import config, model, record_level, task


class Ear(Callback):
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def on_round_end(self, record: RoundRecord) -> None:
        self.heard.append(("end", record))

    def on_abort(self, error: Exception, record: AbortRecord) -> None:
        self.heard.append(("abort", (error, record)))

    def on_budget_refused(self, error: secagg.BudgetExceededError) -> None:
        self.heard.append(("refused", error))


class Tool:
    """Both shapes of an experiment tracker."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.metrics: list[tuple[dict[str, float], int]] = []

    def add_scalar(self, tag: str, value: float, step: int, /) -> None:
        self.scalars.append((tag, value, step))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.append((metrics, step))


def samples(text: str) -> dict[str, float]:
    """A strict reader of the exposition format: HELP and TYPE of each family, then its samples."""
    found: dict[str, float] = {}
    lines = text.splitlines()
    assert text.endswith("\n")
    family = ""
    for number, line in enumerate(lines):
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert lines[number + 1].split(" ")[:3] == ["#", "TYPE", family]
            assert lines[number + 1].split(" ")[3] in {"counter", "gauge"}
        elif not line.startswith("# TYPE"):
            name, _, value = line.rpartition(" ")
            assert name.partition("{")[0] == family
            assert name not in found
            found[name] = float(value)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two rounds that finish and one that the budget refuses; then another run whose second round is aborted."""
    folder = tmp_path_factory.mktemp("run")
    clients, _ = task()
    ear, tool, plain = Ear(), Tool(), []
    prometheus = Prometheus(budget='one "two"\n\\', epsilon_limit=6.0)
    callbacks = [ear, plain.append, JsonLines(folder / "log"), Scalars(tool), Metrics(tool), prometheus]
    with pytest.raises(secagg.BudgetExceededError):
        train(
            model, clients, config(record_level(2)), rounds=3, learning_rate=0.1, callbacks=callbacks,
            drop=lambda number: {number: Phase.CONSISTENCY_CHECK},
        )  # fmt: skip
    refused = prometheus.text()
    clients, _ = task()  # the other records have spent their budget
    with pytest.raises(secagg.TooFewClientsError):
        train(
            model, clients, config(record_level(2)), rounds=2, learning_rate=0.1, callbacks=callbacks,
            drop=lambda number: {} if number == 1 else {1: Phase.SHARE_KEYS, 2: Phase.MASKED_INPUT},
        )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    return {"ear": ear, "tool": tool, "plain": plain, "lines": lines, "refused": refused, "text": prometheus.text()}


def test_every_moment_is_told_once_and_in_order(run: dict[str, Any]) -> None:
    assert [kind for kind, _ in run["ear"].heard] == ["end", "end", "refused", "end", "abort"]
    assert run["plain"] == [record for kind, record in run["ear"].heard if kind == "end"]
    assert [line["event"] for line in run["lines"]] == [
        "round_end",
        "round_end",
        "budget_refused",
        "round_end",
        "abort",
    ]


def test_silence_is_counted_where_it_was(run: dict[str, Any]) -> None:
    first = run["plain"][0]
    expected = dict.fromkeys(SERVER_PHASES, 0) | {Phase.CONSISTENCY_CHECK: 1}
    assert first.missing == expected
    assert first.seconds.keys() == expected.keys()
    assert first.survivors == 5  # its vector is in the sum
    error, record = run["ear"].heard[-1][1]
    assert isinstance(error, secagg.TooFewClientsError)
    assert (record.round, record.phase) == (2, Phase.MASKED_INPUT)
    assert record.missing == {Phase.ADVERTISE_KEYS: 0, Phase.SHARE_KEYS: 1, Phase.MASKED_INPUT: 1}
    assert record.epsilon == run["plain"][-1].epsilon  # nothing was unmasked, nothing is spent


def test_the_same_numbers_reach_every_tool(run: dict[str, Any]) -> None:
    records = [run["plain"][0], run["plain"][1], run["plain"][2], run["ear"].heard[-1][1][1]]
    assert run["tool"].metrics == [(record.metrics(), record.round) for record in records]
    assert run["tool"].scalars == [
        (name, value, record.round) for record in records for name, value in record.metrics().items()
    ]
    logged = [line for line in run["lines"] if line["event"] != "budget_refused"]
    for line, record in zip(logged, records, strict=True):
        for name, value in record.metrics().items():
            assert line[name] == value


def test_prometheus_text(run: dict[str, Any]) -> None:
    refused, found = samples(run["refused"]), samples(run["text"])
    label = r'{budget="one \"two\"\n\\"}'
    assert refused['secagg_rounds_total{outcome="refused"}'] == 1
    assert found['secagg_rounds_total{outcome="finished"}'] == 3
    assert found['secagg_rounds_total{outcome="aborted"}'] == 1
    assert found[f"secagg_epsilon_limit{label}"] == 6.0
    assert found[f"secagg_epsilon_spent{label}"] == run["plain"][-1].epsilon
    assert found["secagg_survivors"] == 5
    assert found['secagg_missing{phase="MaskedInput"}'] == 1
    assert 'secagg_phase_seconds{phase="AdvertiseKeys"}' in found
    assert "client" not in "".join(found)  # no label of anybody


def test_prometheus_before_the_first_round_and_without_privacy() -> None:
    prometheus = Prometheus(budget="b", epsilon_limit=math.inf)
    found = samples(prometheus.text())
    assert found['secagg_epsilon_limit{budget="b"}'] == math.inf
    assert "secagg_survivors" not in found
    clients, _ = task()
    train(model, clients, config(secagg.NoPrivacy(clip_norm=9.0)), rounds=1, learning_rate=0.1, callbacks=[prometheus])
    assert samples(prometheus.text())['secagg_epsilon_spent{budget="b"}'] == math.inf


def test_infinite_numbers_are_text_in_json(tmp_path: Path) -> None:
    clients, _ = task()
    settings = config(secagg.NoPrivacy(clip_norm=9.0))
    train(model, clients, settings, rounds=1, learning_rate=0.1, callbacks=[JsonLines(tmp_path / "log")])
    line = (tmp_path / "log").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["privacy/epsilon"] == "inf"


def test_an_object_needs_one_method_only() -> None:
    class OnlyRefusals:
        def on_budget_refused(self, error: Exception) -> None:
            raise KeyError("heard")

    told = Callbacks([OnlyRefusals()])  # type: ignore[list-item]
    told.on_round_end(None)  # type: ignore[arg-type]
    told.on_abort(None, None)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="heard"):
        told.on_budget_refused(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no callback"):
        Callbacks([3])  # type: ignore[list-item]


class TestServer:
    def test_counts_whom_it_waited_for(self) -> None:
        parties = Parties(config=plain_config(5, max_dropouts=2))
        updates = updates_for(parties.config)
        result = parties.run(updates, silent={1: Phase.ADVERTISE_KEYS, 3: Phase.UNMASK})
        assert result.missing == dict.fromkeys(SERVER_PHASES, 0) | {Phase.ADVERTISE_KEYS: 1, Phase.UNMASK: 1}
        assert result.bytes_up == sum(len(data) for _, _, data in parties.sent)
        assert list(result.seconds) == list(SERVER_PHASES)
        assert all(seconds >= 0 for seconds in result.seconds.values())
        facts = json.loads(json.dumps(result.to_dict()))
        assert facts["missing"]["Unmask"] == 1
        again = parties.run(updates, model=updates[1])
        assert set(again.missing.values()) == {0}  # nothing of the round before is left
        assert result.missing[Phase.UNMASK] == 1

    def test_an_abort_tells_too(self) -> None:
        parties = Parties(private_config(5))
        with pytest.raises(secagg.TooFewClientsError):
            parties.run(updates_for(parties.config), silent={1: Phase.SHARE_KEYS, 2: Phase.SHARE_KEYS})
        assert parties.server.missing == {Phase.ADVERTISE_KEYS: 0, Phase.SHARE_KEYS: 2}
        assert list(parties.server.seconds) == [Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS]

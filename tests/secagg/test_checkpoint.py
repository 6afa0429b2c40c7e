"""Runs that are killed: they resume where they were, nothing is used twice, and no ledger forgets what left."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

import secagg
from dp import PrivacyLedger, local_noise, planned_budget
from protocols import Phase
from secagg.adapters.torch import parameters_of
from secagg.callbacks import RoundRecord
from secagg.checkpoint import Checkpoint, CheckpointError, Saved
from secagg.training import train

from . import crashing_run
from .test_local_records import UNIT, blobs
from .test_local_records import config as local_config
from .test_training import CLIENTS, RECORDS, config, model, record_level, task

ROOT = Path(__file__).parents[2]


class Stop(Exception):
    """A callback's way to end a run after a round."""


def stop_after(number: int) -> Any:
    def callback(record: RoundRecord) -> None:
        if record.round == number:
            raise Stop

    return callback


def survives(folder: Path, kills: int) -> None:
    """One run, killed so many times, against what an independent note says of it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.secagg.crashing_run", str(folder), str(kills)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spent = json.loads((folder / "disturbed" / "done").read_text())
    assert len(spent) == crashing_run.ROUNDS
    assert spent == sorted(spent)
    notes = [json.loads(line) for line in (folder / "disturbed" / "left").read_text().splitlines()]
    keys = [key for note in notes for key in note.get("keys", ())]
    assert len(keys) == len(set(keys))  # no key of a killed round serves again
    assert len(keys) >= 2 * crashing_run.CLIENTS * crashing_run.ROUNDS
    agreed = crashing_run.config(kills)
    assert agreed.mechanism is not None
    masked = Counter(note["client"] for note in notes if note["phase"] == Phase.MASKED_INPUT.value)
    for client in range(1, crashing_run.CLIENTS + 1):
        with PrivacyLedger.open(folder / "disturbed" / "run" / "ledgers" / f"client-{client}.ledger") as ledger:
            state = ledger.state()
            cheapest = min(
                int(str(entry.to_dict()["amount"]))
                for entry in ledger.entries()
                if entry.to_dict()["transition"] == "commit"
            )
        assert state.rounds_reserved == 0
        assert state.rounds_committed >= masked[client]
        assert masked[client] * cheapest <= state.filter_spent <= state.filter_limit
    with PrivacyLedger.open(folder / "disturbed" / "run" / "ledgers" / "server.ledger") as ledger:
        state = ledger.state()
    assert state.rounds_reserved == 0
    released = sum(note["phase"] == Phase.UNMASK.value for note in notes)
    assert state.rounds_committed >= math.ceil(released / (crashing_run.CLIENTS - 1))  # one falls silent
    assert crashing_run.ROUNDS <= state.rounds_committed <= crashing_run.ROUNDS + int((folder / "killed").read_text())


def test_four_kills_lose_no_round_and_hide_no_cost(tmp_path: Path) -> None:
    survives(tmp_path, 4)


@pytest.mark.slow
@pytest.mark.parametrize("_run", range(25))
def test_a_hundred_kills(_run: int, tmp_path: Path) -> None:
    survives(tmp_path, 4)


def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    """Without noise and with whole batches the model is determined, up to the rounding of 2^-20 or so."""
    clients, _ = task()
    agreed = config(secagg.NoPrivacy(clip_norm=50.0))
    settings: dict[str, Any] = {"rounds": 4, "learning_rate": 0.1, "momentum": 0.0, "batch_size": RECORDS}
    whole = train(model, clients, agreed, **settings)
    with pytest.raises(Stop):
        train(model, clients, agreed, **settings, checkpoint=tmp_path, callbacks=[stop_after(3)])
    heard: list[RoundRecord] = []
    resumed = train(model, clients, agreed, **settings, checkpoint=tmp_path, callbacks=[heard.append])
    assert [record.round for record in heard] == [4]  # what was told is not told again
    assert [record.round for record in resumed.rounds] == [1, 2, 3, 4]
    assert resumed.exact_sums == 4
    for name, array in parameters_of(resumed.model).items():
        assert np.allclose(array, parameters_of(whole.model)[name], atol=1e-5)
    again = train(model, clients, agreed, **settings, checkpoint=tmp_path)
    assert again.last is None
    assert again.rounds == resumed.rounds
    for name, array in parameters_of(again.model).items():
        assert np.array_equal(array, parameters_of(resumed.model)[name])


def test_momentum_survives(tmp_path: Path) -> None:
    """The optimizer that is put back makes the step that the lost one would have made."""
    from secagg.learners import FederatedSgd

    clients, _ = task()
    agreed = config(record_level(3))

    def server() -> FederatedSgd:
        own = model()
        loss, simulation = nn.CrossEntropyLoss(reduction="sum"), secagg.Simulation(agreed, clients=clients)
        return FederatedSgd(model, clients, agreed, 0.5, 0.9, loss, own, simulation)

    lost, state = server(), parameters_of(model())
    mean = SimpleNamespace(mean={name: np.ones_like(array) for name, array in state.items()})
    for _ in range(2):
        state = lost.step(state, mean)  # type: ignore[arg-type]
    store = Checkpoint(tmp_path, run={})
    groups = {"model": state, "optimizer": lost.state()}
    store.save(Saved(records=(), exact_sums=0, groups=groups, heads={}, clip_norm=1.0))
    found = store.load()
    assert found is not None
    resumed = server()
    resumed.restore(found.groups["optimizer"], dict(found.groups["model"]))
    expected = lost.step(state, mean)  # type: ignore[arg-type]
    for name, array in resumed.step(dict(found.groups["model"]), mean).items():  # type: ignore[arg-type]
        assert np.array_equal(array, expected[name])


def test_an_adaptive_clip_norm_goes_on_where_it_was(tmp_path: Path) -> None:
    clients, _ = task()
    unit = secagg.ClientLevel(
        clip_norm=secagg.AdaptiveClipping(initial=0.01), epsilon=50.0, delta=1e-5, rounds=4
    )  # fmt: skip
    agreed = config(unit)
    settings: dict[str, Any] = {"rounds": 3, "learning_rate": 0.1, "checkpoint": tmp_path}
    with pytest.raises(Stop):
        train(model, clients, agreed, **settings, callbacks=[stop_after(2)])
    store = (tmp_path / "run.npz").read_bytes()
    resumed = train(model, clients, agreed, **settings)
    norms = [record.clip_norm for record in resumed.rounds]
    assert norms[0] == 0.01
    assert len(set(norms)) == 3  # it moved in every round
    (tmp_path / "run.npz").write_bytes(store)
    with np.load(tmp_path / "run.npz") as arrays:
        assert json.loads(bytes(arrays["facts"]))["clip_norm"] == norms[2]


class TestLocalRecords:
    """Clients keep a budget of their own steps: those ledgers are part of the run."""

    def run(self, folder: Path, **options: Any) -> Any:
        clients = {client: blobs(100, client) for client in range(1, 5)}
        return train(
            lambda: nn.Linear(3, 2), clients, local_config(), rounds=3, learning_rate=0.5, checkpoint=folder, **options
        )

    def test_resume_on_their_own_ledgers(self, tmp_path: Path) -> None:
        with pytest.raises(Stop):
            self.run(tmp_path, callbacks=[stop_after(2)])
        heads = self.heads(tmp_path)
        assert len(heads) == 4
        result = self.run(tmp_path)
        assert len(result.rounds) == 3
        assert result.rounds[-1].delta == UNIT.delta
        for client in range(1, 5):
            with PrivacyLedger.open(tmp_path / "ledgers" / f"steps-{client}.ledger") as ledger:
                assert ledger.verify(expected_head=heads[client])
                state = ledger.state()
                assert state.rounds_committed == 3 * UNIT.local_steps
                assert state.rounds_reserved == 0

    def test_charge_steps_in_flight(self, tmp_path: Path) -> None:
        with pytest.raises(Stop):
            self.run(tmp_path, callbacks=[stop_after(1)])
        budget, event = (
            planned_budget(UNIT, local_noise(UNIT, dimension=8)),
            local_noise(UNIT, dimension=8).event(survivors=1),
        )
        with PrivacyLedger.open(tmp_path / "ledgers" / "steps-2.ledger") as ledger:
            assert ledger.state().limit_epsilon == budget.epsilon
            lost = ledger.reserve(event, request_id="a step of a process that died")
            assert ledger.unfinished() == (lost,)
        self.run(tmp_path)
        with PrivacyLedger.open(tmp_path / "ledgers" / "steps-2.ledger") as ledger:
            assert ledger.unfinished() == ()
            assert ledger.state().rounds_committed == 3 * UNIT.local_steps + 1

    def test_missing_ledgers_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(Stop):
            self.run(tmp_path, callbacks=[stop_after(1)])
        for path in (tmp_path / "ledgers").glob("*"):
            path.unlink()
        with pytest.raises(secagg.LedgerError, match="missing"):
            self.run(tmp_path)

    def heads(self, folder: Path) -> dict[int, str]:
        heads = {}
        for client in range(1, 5):
            with PrivacyLedger.open(folder / "ledgers" / f"steps-{client}.ledger") as ledger:
                heads[client] = ledger.head
        return heads


class TestRefusals:
    @pytest.fixture
    def begun(self, tmp_path: Path) -> Path:
        """A private run that stopped after its first round."""
        clients, _ = task()
        with pytest.raises(Stop):
            train(
                model, clients, config(record_level(4)), rounds=2, learning_rate=0.1, checkpoint=tmp_path,
                callbacks=[stop_after(1)],
            )  # fmt: skip
        return tmp_path

    def resume(self, folder: Path, **changes: Any) -> Any:
        clients, _ = task()
        settings = {"config": config(record_level(4)), "rounds": 2, "learning_rate": 0.1, **changes}
        return train(model, clients, settings.pop("config"), **settings, checkpoint=folder)

    @pytest.mark.parametrize(
        "change",
        [{"config": config(record_level(5))}, {"rounds": 3}, {"learning_rate": 0.2}, {"momentum": 0.0}],
        ids=["config", "rounds", "learning rate", "momentum"],
    )
    def test_another_run(self, begun: Path, change: dict[str, Any]) -> None:
        before = (begun / "run.npz").read_bytes()
        with pytest.raises(CheckpointError, match="another run"):
            self.resume(begun, **change)
        assert (begun / "run.npz").read_bytes() == before
        assert len(self.resume(begun).rounds) == 2

    @pytest.mark.parametrize("cut", [0, 10, -1])
    def test_a_damaged_file(self, begun: Path, cut: int) -> None:
        file = begun / "run.npz"
        file.write_bytes(file.read_bytes()[:cut])
        with pytest.raises(CheckpointError, match="damaged"):
            self.resume(begun)

    def test_missing_ledgers(self, begun: Path) -> None:
        (begun / "ledgers").rename(begun / "elsewhere")
        with pytest.raises(secagg.LedgerError, match="missing"):
            self.resume(begun)

    def test_a_folder_of_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "ledgers").mkdir()
        (tmp_path / "ledgers" / "notes").touch()
        with pytest.raises(secagg.LedgerError, match="other files"):
            self.resume(tmp_path)

    def test_one_missing_ledger(self, begun: Path) -> None:
        (begun / "ledgers" / "client-2.ledger").unlink()
        with pytest.raises(secagg.LedgerError, match="missing"):
            self.resume(begun)

    def test_a_ledger_from_before_the_checkpoint(self, begun: Path) -> None:
        path = begun / "ledgers" / "client-2.ledger"
        path.unlink()
        budget = config(record_level(4)).budget()
        assert budget is not None
        PrivacyLedger.create(path, budget=budget).close()
        with pytest.raises(secagg.LedgerError, match="does not contain"):
            self.resume(begun)

    def test_a_half_made_folder_of_ledgers_is_made_again(self, tmp_path: Path) -> None:
        beside = tmp_path / "ledgers.new"
        beside.mkdir(parents=True)
        (beside / "server.ledger").write_bytes(b"half")
        assert len(self.resume(tmp_path).rounds) == 2
        assert not beside.exists()
        assert len(list((tmp_path / "ledgers").glob("*.ledger"))) == CLIENTS + 1

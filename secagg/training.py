"""Federated training in one process, in five steps: initialise, train locally, send, aggregate, update.

What a client does in step 2 follows from the privacy unit:

- `RecordLevel`: one step of federated SGD. Opacus computes per-record gradients on a secret Poisson batch; each is
  clipped and rounded on its own, noise is added, and the server's optimizer steps on the noised mean gradient.
- `LocalRecordLevel`: a few steps of DP-SGD, each with all its noise; the difference is the update.
- `ClientLevel`, `NoPrivacy`: any number of local epochs (FedAvg, McMahan et al., AISTATS 2017); the difference to the
  round's model is the update. With `PrivateWeights` each update weighs as much as its client has records, which rides
  masked; else all weigh the same, or as the public weights say. A metric named "loss" is the mean loss over local
  training.

The model that `train` returns is the mean of the models of the second half of the rounds. That is post-processing: it
costs no privacy, and it averages noise out.

With a checkpoint the run survives a crash: called again with the same arguments, `train` goes on after the last round
that had finished. A round in flight is charged in full and done again, with new keys and new noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dp import (
    BudgetExceededError,
    LedgerError,
    LocalRecordLevel,
    PrivacyError,
    RecordLevel,
    local_noise,
    planned_budget,
)
from protocols import ProtocolError

from .adapters.torch import load_parameters, parameters_of
from .callbacks import AbortRecord, AnyCallback, Callbacks, RoundRecord
from .checkpoint import Checkpoint, Saved, enrol, has_ledgers, settle
from .config import AggregationConfig
from .learners import Arrays, FederatedAveraging, FederatedSgd, Learner, LocalPrivateSgd, Loss
from .server import AggregationResult
from .simulation import DropPlan, Simulation, Tap
from .statement import statement

try:
    from torch import nn
    from torch.utils.data import Dataset
except ImportError as error:
    raise ImportError("train() needs PyTorch and Opacus: pip install 'secagg[torch]'") from error

__all__ = ["RoundRecord", "TrainingResult", "sum_cross_entropy", "train"]

sum_cross_entropy: Loss = partial(nn.functional.cross_entropy, reduction="sum")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingResult:
    """A trained model and how it came about.

    Attributes:
        model: the mean of the models of the second half of the rounds.
        rounds: one record for each round.
        exact_sums: rounds whose released sum was compared with the plain integer sum and found equal.
        last: the last round's result; None if all rounds had finished before this call.
        config: what was agreed.
    """

    model: nn.Module
    rounds: tuple[RoundRecord, ...]
    exact_sums: int
    last: AggregationResult | None
    config: AggregationConfig

    def statement(self) -> str:
        """What was hidden from whom over the whole training, at the fewest survivors of any round."""
        fewest = min(record.survivors for record in self.rounds)
        return statement(self.config, survivors=fewest, rounds=len(self.rounds), spent=self.rounds[-1].epsilon)


def train(
    model_fn: Callable[[], nn.Module],
    clients: Mapping[int, Dataset[Any]],
    config: AggregationConfig,
    *,
    rounds: int,
    learning_rate: float,
    momentum: float = 0.9,
    local_epochs: int = 1,
    batch_size: int = 32,
    loss: Loss = sum_cross_entropy,
    evaluate: Callable[[nn.Module], float] | None = None,
    drop: Callable[[int], DropPlan] | None = None,
    callbacks: Iterable[AnyCallback] = (),
    ledger_directory: str | Path | None = None,
    checkpoint: str | Path | None = None,
    tap: Tap | None = None,
) -> TrainingResult:
    """Trains one model over the data of all clients, none of which leaves its client.

    Args:
        model_fn: builds the model; called once for the server and once for each client.
        clients: each client's data set of (features, target) pairs.
        config: what all parties agree on; its layout is that of the model's parameters.
        rounds: how many rounds; with privacy at most the rounds that the budget was planned for.
        learning_rate: of the server's SGD for `RecordLevel`, of the clients' local SGD otherwise.
        momentum: of the same optimizer.
        local_epochs: passes over the local data in a round; not used for units of records.
        batch_size: of local training; for units of records batches are Poisson draws at the unit's rate.
        loss: `loss(outputs, targets)`, summed over the records.
        evaluate: a score of the model after each round, on public data.
        drop: who falls silent in a given round (numbered from 1).
        callbacks: told of every finished round, and of the one that ends the run: functions or `Callback`s.
        ledger_directory: where all parties keep their budgets; in memory, or in the checkpoint's folder, if None. With
            a checkpoint it is for this run alone.
        checkpoint: a folder that makes the run survive a crash. To resume, call again with the same arguments.
        tap: sees every message that reaches the server.

    Raises:
        BudgetExceededError: the budget allows no further round; nothing of that round left a client.
        TooFewClientsError: too many clients fell silent.
        CheckpointError: the checkpoint is damaged or belongs to another run.
        LedgerError: a ledger is missing, damaged, or older than the checkpoint.
        ValueError: the model does not match the layout, or an argument is out of its range.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    told = Callbacks(callbacks)
    settings = {
        "config": config.digest().hex(), "clients": sorted(clients), "rounds": rounds, "learning_rate": learning_rate,
        "momentum": momentum, "local_epochs": local_epochs, "batch_size": batch_size,
    }  # fmt: skip
    store = None if checkpoint is None else Checkpoint(checkpoint, run=settings)
    saved = None if store is None else store.load()
    if store is not None:
        ledger_directory = _ledgers(store, saved, config, clients, ledger_directory)
    # 1. Initialise: the server's model is the model.
    model = model_fn()
    state = parameters_of(model)
    simulation = Simulation(config, clients=clients, ledger_directory=ledger_directory)
    learner: Learner | None = None
    try:
        if isinstance(config.privacy, RecordLevel):
            learner = FederatedSgd(model_fn, clients, config, learning_rate, momentum, loss, model, simulation)
        elif isinstance(config.privacy, LocalRecordLevel):
            learner = LocalPrivateSgd(
                model_fn, clients, config.privacy, learning_rate, momentum, loss, ledger_directory
            )
        else:
            learner = FederatedAveraging(
                model_fn, clients, config, learning_rate, momentum, local_epochs, batch_size, loss
            )
        ledgers = simulation.ledgers | learner.ledgers
        average: Arrays = {name: np.zeros(array.shape) for name, array in state.items()}
        records: list[RoundRecord] = []
        result: AggregationResult | None = None
        if store is not None:
            settle(saved, ledgers)
        if saved is not None:
            state, average = dict(saved.groups["model"]), dict(saved.groups["average"])
            learner.restore(saved.groups["optimizer"], state)
            load_parameters(model, state)
            simulation.server.config = config.with_clip_norm(saved.clip_norm)
            records, simulation.exact_sums = list(saved.records), saved.exact_sums
        averaged_from = rounds // 2
        for number in range(len(records) + 1, rounds + 1):
            try:
                # 2. and 3. Train locally and send: each client is asked when the protocol is ready for its update.
                result = simulation.round(
                    partial(learner.update, start=state),
                    drop=() if drop is None else drop(number),
                    model=state,
                    tap=tap,
                )
            except BudgetExceededError as error:
                told.on_budget_refused(error)
                raise
            except (ProtocolError, PrivacyError) as error:
                told.on_abort(error, _aborted(number, simulation))
                raise
            # 4. and 5. The protocol has aggregated; the server updates the model.
            state = learner.step(state, result)
            load_parameters(model, state)
            if number > averaged_from:
                for name, array in state.items():
                    average[name] += array / (rounds - averaged_from)
            records.append(_finished(number, result, simulation, None if evaluate is None else evaluate(model)))
            if store is not None:
                store.save(
                    Saved(
                        records=tuple(records),
                        exact_sums=simulation.exact_sums,
                        groups={"model": state, "average": average, "optimizer": learner.state()},
                        heads={name: ledger.head for name, ledger in ledgers.items()},
                        clip_norm=simulation.server.config.clip_norm,
                    )
                )
            told.on_round_end(records[-1])
    finally:
        simulation.close()
        if learner is not None:
            learner.close()
    load_parameters(model, {name: array.astype(state[name].dtype) for name, array in average.items()})
    return TrainingResult(
        model=model, rounds=tuple(records), exact_sums=simulation.exact_sums, last=result, config=config
    )


def _ledgers(
    store: Checkpoint,
    saved: Saved | None,
    config: AggregationConfig,
    clients: Iterable[int],
    directory: str | Path | None,
) -> Path:
    """The folder of a resumable run's ledgers, which all exist afterwards; new ones only for a new run."""
    folder = store.ledgers if directory is None else Path(directory)
    names, budget = ["server", *(f"client-{client}" for client in sorted(clients))], config.budget()
    if isinstance(config.privacy, LocalRecordLevel):
        names = [f"steps-{client}" for client in sorted(clients)]
        budget = planned_budget(config.privacy, local_noise(config.privacy, dimension=config.layout.length))
    if budget is None:
        return folder
    if saved is not None and not has_ledgers(folder):
        raise LedgerError(
            f"the ledgers in {folder} are missing: restore those of this run, new ones would forget what was spent"
        )
    enrol(folder, names, budget=budget)
    return folder


def _finished(number: int, result: AggregationResult, simulation: Simulation, score: float | None) -> RoundRecord:
    ledger = simulation.server.ledger
    spent = None if ledger is None else ledger.state()
    return RoundRecord(
        round=number,
        survivors=len(result.survivors),
        dropouts=result.config.clients - len(result.survivors),
        missing=result.missing,
        seconds=result.seconds,
        bytes_up=result.bytes_up,
        epsilon=result.epsilon,
        clip_norm=result.config.clip_norm,
        delta=getattr(result.config.privacy, "delta", None),
        budget_fraction=None if spent is None else spent.filter_spent / spent.filter_limit,
        score=score,
        riders=result.metrics,
    )


def _aborted(number: int, simulation: Simulation) -> AbortRecord:
    server, privacy = simulation.server, simulation.config.privacy
    own = privacy.epsilon if isinstance(privacy, LocalRecordLevel) else math.inf
    return AbortRecord(
        round=number,
        phase=next(reversed(list(server.missing)), None),
        missing=dict(server.missing),
        seconds=dict(server.seconds),
        bytes_up=server.bytes_up,
        epsilon=own if server.ledger is None else server.ledger.state().epsilon,
    )

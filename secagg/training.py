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
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dp import LocalRecordLevel, PrivacyBudget, PrivacyLedger, RecordLevel, local_noise, planned_budget

from .adapters.torch import load_parameters, parameters_of
from .config import AggregationConfig
from .pipeline import Update
from .riders import Contribution, PrivateWeights
from .server import AggregationResult
from .simulation import DropPlan, Simulation, Tap
from .statement import statement

try:
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset
except ImportError as error:
    raise ImportError("train() needs PyTorch and Opacus: pip install 'secagg[torch]'") from error

Arrays = dict[str, NDArray[np.floating]]
Loss = Callable[[Tensor, Tensor], Tensor]

sum_cross_entropy: Loss = partial(nn.functional.cross_entropy, reduction="sum")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One finished round.

    Attributes:
        round: its number, from 1.
        survivors: clients in the sum.
        dropouts: clients that were invited and are not in it.
        epsilon: spent so far against the server and the assumed colluders; infinity without privacy.
        clip_norm: of this round.
        score: what `evaluate` said of the model after this round; None without `evaluate`.
        riders: the mean of each metric that rode along, noised if the configuration says so.
    """

    round: int
    survivors: int
    dropouts: int
    epsilon: float
    clip_norm: float
    score: float | None
    riders: Mapping[str, float]

    def metrics(self) -> dict[str, float]:
        """A flat dictionary for experiment trackers."""
        values: dict[str, float] = {
            "round/survivors": self.survivors,
            "round/dropouts": self.dropouts,
            "privacy/epsilon": self.epsilon,
            "privacy/clip_norm": self.clip_norm,
        }
        values |= {f"clients/{name}": value for name, value in self.riders.items()}
        return values if self.score is None else values | {"model/score": self.score}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingResult:
    """A trained model and how it came about.

    Attributes:
        model: the mean of the models of the second half of the rounds.
        rounds: one record for each round.
        exact_sums: rounds whose released sum was compared with the plain integer sum and found equal.
        last: the last round's result.
        config: what was agreed.
    """

    model: nn.Module
    rounds: tuple[RoundRecord, ...]
    exact_sums: int
    last: AggregationResult
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
    callbacks: Iterable[Callable[[RoundRecord], None]] = (),
    ledger_directory: str | Path | None = None,
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
        callbacks: called with the record of every finished round.
        ledger_directory: where all parties keep their budgets; in memory if None.
        tap: sees every message that reaches the server.

    Raises:
        BudgetExceededError: the budget allows no further round; nothing of that round left a client.
        TooFewClientsError: too many clients fell silent.
        ValueError: the model does not match the layout, or an argument is out of its range.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    # 1. Initialise: the server's model is the model.
    model = model_fn()
    state = parameters_of(model)
    simulation = Simulation(config, clients=clients, ledger_directory=ledger_directory)
    server: _FederatedSgd | _LocalPrivateSgd | _FederatedAveraging
    if isinstance(config.privacy, RecordLevel):
        server = _FederatedSgd(model_fn, clients, config, learning_rate, momentum, loss, model, simulation)
    elif isinstance(config.privacy, LocalRecordLevel):
        server = _LocalPrivateSgd(model_fn, clients, config.privacy, learning_rate, momentum, loss, ledger_directory)
    else:
        server = _FederatedAveraging(model_fn, clients, config, learning_rate, momentum, local_epochs, batch_size, loss)
    records: list[RoundRecord] = []
    averaged_from = rounds // 2
    average = {name: np.zeros(array.shape) for name, array in state.items()}
    callbacks = tuple(callbacks)
    try:
        for number in range(1, rounds + 1):
            # 2. and 3. Train locally and send: each client is asked when the protocol is ready for its update.
            result = simulation.round(
                partial(server.update, start=state),
                drop=() if drop is None else drop(number),
                model=state,
                tap=tap,
            )
            # 4. and 5. The protocol has aggregated; the server updates the model.
            state = server.step(state, result)
            load_parameters(model, state)
            record = RoundRecord(
                round=number,
                survivors=len(result.survivors),
                dropouts=config.clients - len(result.survivors),
                epsilon=result.epsilon,
                clip_norm=result.config.clip_norm,
                score=None if evaluate is None else evaluate(model),
                riders=result.metrics,
            )
            records.append(record)
            for callback in callbacks:
                callback(record)
            if number > averaged_from:
                for name, array in state.items():
                    average[name] += array / (rounds - averaged_from)
    finally:
        simulation.close()
        if isinstance(server, _LocalPrivateSgd):
            server.close()
    load_parameters(model, {name: array.astype(state[name].dtype) for name, array in average.items()})
    return TrainingResult(
        model=model, rounds=tuple(records), exact_sums=simulation.exact_sums, last=result, config=config
    )


class _FederatedAveraging:
    """Local SGD at the clients; the server adds the mean difference."""

    def __init__(
        self,
        model_fn: Callable[[], nn.Module],
        clients: Mapping[int, Dataset[Any]],
        config: AggregationConfig,
        learning_rate: float,
        momentum: float,
        local_epochs: int,
        batch_size: int,
        loss: Loss,
    ) -> None:
        self._named = tuple(name for name, _, _ in config.riders.metrics)
        if set(self._named) - {"loss"}:
            raise ValueError(f"local training has one metric, 'loss'; the configuration asks for {self._named}")
        self._sizes = {client: len(cast(Sized, data)) for client, data in clients.items()}
        self._weighed = isinstance(config.riders.weights, PrivateWeights)
        self._model = model_fn()
        self._loaders = {
            client: DataLoader(data, batch_size=min(batch_size, len(cast(Sized, data))), shuffle=True)
            for client, data in clients.items()
        }
        self._optimizer = partial(torch.optim.SGD, lr=learning_rate, momentum=momentum)
        self._epochs = local_epochs
        self._loss = loss

    def update(self, client: int, start: Arrays) -> Update:
        """The client's difference to the round's model after its local epochs."""
        load_parameters(self._model, start)
        optimizer = self._optimizer(self._model.parameters())
        self._model.train()
        total, seen = 0.0, 0
        for _ in range(self._epochs):
            for features, targets in self._loaders[client]:
                optimizer.zero_grad()
                loss = self._loss(self._model(features), targets)
                torch.autograd.backward(loss / len(targets))
                optimizer.step()
                total, seen = total + float(loss.detach()), seen + len(targets)
        return Contribution(
            update={name: array - start[name] for name, array in parameters_of(self._model).items()},
            weight=float(self._sizes[client]) if self._weighed else None,
            metrics=dict.fromkeys(self._named, total / seen),
        )

    def step(self, state: Arrays, result: AggregationResult) -> Arrays:
        """The next model."""
        return {name: array + result.mean[name] for name, array in state.items()}


class _FederatedSgd:
    """One private gradient step: per-record gradients at the clients, the optimizer at the server."""

    def __init__(
        self,
        model_fn: Callable[[], nn.Module],
        clients: Mapping[int, Dataset[Any]],
        config: AggregationConfig,
        learning_rate: float,
        momentum: float,
        loss: Loss,
        model: nn.Module,
        simulation: Simulation,
    ) -> None:
        from dp.record_level import SecurePrivacyEngine

        if not isinstance(config.privacy, RecordLevel) or config.mechanism is None:
            raise ValueError(f"federated SGD protects records, the configuration protects {config.privacy.unit!r}")
        trained, agreed = list(parameters_of(model)), [entry.name for entry in config.layout.entries]
        if trained != agreed:
            raise ValueError(f"the model trains {trained}, the layout is {agreed}: make it with parameters_of(model)")
        self._model = model
        self._simulation = simulation
        self._optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
        self._parties: dict[int, tuple[Any, ...]] = {}
        for client, data in clients.items():
            own = model_fn()
            made: tuple[Any, ...] = SecurePrivacyEngine().make_private(
                module=own,
                optimizer=torch.optim.SGD(own.parameters(), lr=learning_rate, momentum=momentum),
                data_loader=DataLoader(data),
                unit=config.privacy,
                mechanism=config.mechanism,
                loss_reduction="sum",
                criterion=loss if config.privacy.rounding == "sum" else None,
                grad_sample_mode="ghost" if config.privacy.rounding == "sum" else "hooks",
            )
            module, optimizer, *criterion, loader = made
            self._parties[client] = (own, module, optimizer, *(criterion or [loss]), _forever(loader))

    def update(self, client: int, start: Arrays) -> Update:
        """The client's noised sum of clipped per-record gradients on one secret batch."""
        own, module, optimizer, loss, batches = self._parties[client]
        optimizer.abandon()
        optimizer.rotate(self._simulation.seed if self._simulation.config.rotation else b"")
        load_parameters(own, start)
        features, targets = next(batches)
        if len(targets):
            loss(module(features), targets).backward()
        contribution: Update = optimizer.contribution()
        return contribution

    def step(self, state: Arrays, result: AggregationResult) -> Arrays:
        """The next model: the server's optimizer on the noised mean gradient."""
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                parameter.grad = torch.from_numpy(result.mean[name].astype(state[name].dtype))
        self._optimizer.step()
        return parameters_of(self._model)


class _LocalPrivateSgd:
    """Local DP-SGD at the clients, whose budgets are their own; the server adds the mean difference."""

    def __init__(
        self,
        model_fn: Callable[[], nn.Module],
        clients: Mapping[int, Dataset[Any]],
        unit: LocalRecordLevel,
        learning_rate: float,
        momentum: float,
        loss: Loss,
        ledger_directory: str | Path | None,
    ) -> None:
        from dp.record_level import SecurePrivacyEngine

        self._steps = unit.local_steps
        self._parties: dict[int, tuple[Any, ...]] = {}
        for client, data in clients.items():
            own = model_fn()
            trained = sum(parameter.numel() for parameter in own.parameters() if parameter.requires_grad)
            made: tuple[Any, ...] = SecurePrivacyEngine().make_private(
                module=own,
                optimizer=torch.optim.SGD(own.parameters(), lr=learning_rate, momentum=momentum),
                data_loader=DataLoader(data),
                unit=unit,
                ledger=_local_ledger(
                    ledger_directory, client, planned_budget(unit, local_noise(unit, dimension=trained))
                ),
                loss_reduction="sum",
                criterion=loss if unit.rounding == "sum" else None,
                grad_sample_mode="ghost" if unit.rounding == "sum" else "hooks",
            )
            module, optimizer, *criterion, loader = made
            self._parties[client] = (own, module, optimizer, *(criterion or [loss]), _forever(loader))

    def update(self, client: int, start: Arrays) -> Update:
        """The client's difference to the round's model after its private steps."""
        own, module, optimizer, loss, batches = self._parties[client]
        optimizer.abandon()
        optimizer.original_optimizer.state.clear()
        load_parameters(own, start)
        optimizer.start_update()
        for _ in range(self._steps):
            features, targets = next(batches)
            if len(targets):
                loss(module(features), targets).backward()
            optimizer.step()
        update: Update = optimizer.local_update(own)
        return update

    def step(self, state: Arrays, result: AggregationResult) -> Arrays:
        """The next model."""
        return {name: array + result.mean[name] for name, array in state.items()}

    def close(self) -> None:
        """Closes the clients' ledgers."""
        for _, _, optimizer, *_ in self._parties.values():
            optimizer.ledger.close()


def _local_ledger(directory: str | Path | None, client: int, budget: PrivacyBudget) -> PrivacyLedger:
    """A client's own ledger: continued if there is one, else begun."""
    if directory is None:
        return PrivacyLedger.create(":memory:", budget=budget)
    path = Path(directory) / f"steps-{client}.ledger"
    if path.exists():
        return PrivacyLedger.open(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return PrivacyLedger.create(path, budget=budget)


def _forever(batches: Iterable[Any]) -> Iterator[Any]:
    """Pass after pass."""
    while True:
        yield from batches

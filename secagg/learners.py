"""What clients and server compute in a training round, apart from aggregation.

- `FederatedAveraging`: local epochs at the clients, whose difference to the round's model is the update.
- `FederatedSgd`: per-record gradients at the clients, the optimizer at the server.
- `LocalPrivateSgd`: DP-SGD at the clients, whose budgets are their own; the difference is the update.

`update` runs at a client, `step` at the server. `state` is what the server must keep between rounds beside the model;
`restore` puts it back after a crash. Clients keep nothing from one round to the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
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
from .simulation import Simulation

try:
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset
except ImportError as error:
    raise ImportError("train() needs PyTorch and Opacus: pip install 'secagg[torch]'") from error

Arrays = dict[str, NDArray[np.floating]]
Loss = Callable[[Tensor, Tensor], Tensor]


class Learner(ABC):
    """A way to learn: what a client sends, and what the server makes of the mean."""

    @abstractmethod
    def update(self, client: int, start: Arrays) -> Update:
        """What a client contributes to a round that starts from the model `start`."""

    def step(self, state: Arrays, result: AggregationResult) -> Arrays:
        """The next model: the mean difference is added."""
        return {name: array + result.mean[name] for name, array in state.items()}

    def state(self) -> Arrays:
        """What the server remembers beside the model: nothing, if it only adds."""
        return {}

    def restore(self, saved: Mapping[str, NDArray[np.floating]], state: Arrays) -> None:  # noqa: B027 - it may be nothing
        """Puts back what `state` gave, for the model that has the parameters `state`."""

    @property
    def ledgers(self) -> dict[str, PrivacyLedger]:
        """Ledgers beside those of the rounds, by the names of their files."""
        return {}

    def close(self) -> None:
        """Closes these ledgers."""
        for ledger in self.ledgers.values():
            ledger.close()


class FederatedAveraging(Learner):
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


class FederatedSgd(Learner):
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

    def state(self) -> Arrays:
        """The optimizer's momentum, by parameter."""
        return {
            name: self._optimizer.state[parameter]["momentum_buffer"].numpy().copy()
            for name, parameter in self._model.named_parameters()
            if self._optimizer.state[parameter].get("momentum_buffer") is not None
        }

    def restore(self, saved: Mapping[str, NDArray[np.floating]], state: Arrays) -> None:
        """Puts back the momentum of `saved`, for the model that has the parameters `state`."""
        load_parameters(self._model, state)
        for name, parameter in self._model.named_parameters():
            if name in saved:
                self._optimizer.state[parameter]["momentum_buffer"] = torch.from_numpy(saved[name].copy())


class LocalPrivateSgd(Learner):
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

    @property
    def ledgers(self) -> dict[str, PrivacyLedger]:
        """The clients' ledgers, by the names of their files."""
        return {f"steps-{client}": optimizer.ledger for client, (_, _, optimizer, *_) in self._parties.items()}


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

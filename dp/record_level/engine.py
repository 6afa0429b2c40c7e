"""Opacus' front door for one client of a federation.

Rules:

- What would void the guarantee is refused here, once, before training, with the way out in the message.
- One data set has one accountant: an engine that is built anew in the same process continues with it.
"""

import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import IO, Any, Final
from weakref import WeakKeyDictionary

import torch
from opacus import PrivacyEngine
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel
from opacus.grad_sample import AbstractGradSampleModule
from opacus.layers.dp_rnn import DPRNNBase
from opacus.optimizers import DPOptimizer
from opacus.validators.errors import UnsupportedModuleError
from opacus.validators.module_validator import ModuleValidator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset

from ..errors import UnaccountableError
from ..ledger import PrivacyLedger
from ..local import local_noise
from ..mechanisms import DistributedNoise, calibrate
from ..units import LocalRecordLevel, RecordLevel
from .accountant import SkellamAccountant
from .batches import (
    GHOST_ROW_REACH,
    ROW_REACH,
    FixedRows,
    IndexedDataset,
    SecretPoissonSampler,
    default_rows,
    with_batches,
)
from .ghost import GhostLoss, GhostRows
from .optimizer import Aggregate, SecureDPOptimizer

_DISTRIBUTED = (
    DistributedDataParallel,
    FullyShardedDataParallel,
    FSDPModule,
    DifferentiallyPrivateDistributedDataParallel,
)

_SECURE_MODE_WARNING = (  # beside the point: none of our randomness comes from PyTorch
    "Secure RNG turned off. This is perfectly fine for experimentation as it allows for much faster training "
    "performance, but remember to turn it on and retrain one last time before production with ``secure_mode`` turned "
    "on."
)

_REPLACEMENTS: Final[Mapping[type[nn.Module], str]] = {
    _BatchNorm: "GroupNorm or LayerNorm",
    nn.LSTM: "opacus.layers.DPLSTM",
    nn.GRU: "opacus.layers.DPGRU",
    nn.RNN: "opacus.layers.DPRNN",
    nn.MultiheadAttention: "opacus.layers.DPMultiheadAttention",
}
"""Layers without per-record gradients, and what to take instead."""

_SUPPORTED: Final[Mapping[str, object]] = {
    "poisson_sampling": True,
    "clipping": "flat",
    "batch_first": True,
    "wrap_model": True,
    "rand_on_empty": False,
    "noise_generator": None,
}
"""Options of Opacus' `make_private` that have one right value here."""

Private = tuple[nn.Module, SecureDPOptimizer, DataLoader[object]]
GhostPrivate = tuple[nn.Module, SecureDPOptimizer, GhostLoss, DataLoader[object]]

_accountants: WeakKeyDictionary[object, SkellamAccountant] = WeakKeyDictionary()  # by data set


class SecurePrivacyEngine(PrivacyEngine):  # type: ignore[misc]  # Opacus is untyped
    """Opacus' `PrivacyEngine` for one client: `make_private`, an ordinary loop, `get_epsilon`.

    Args:
        accountant: The client's accountant, if it has one from before. By default the one that this process already
            keeps for the data set, or else a new one.

    Raises:
        ValueError: `secure_mode` is asked for: it is Opacus' own generator.
    """

    def __init__(self, *, accountant: SkellamAccountant | None = None, secure_mode: bool = False) -> None:
        if secure_mode:
            raise ValueError("secure_mode must be False: noise and batches never come from Opacus' generators here")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=re.escape(_SECURE_MODE_WARNING))
            super().__init__(accountant=SkellamAccountant.mechanism())
        self.dataset: object = None
        self._accountant_given = accountant is not None
        if accountant is not None:
            self.accountant = accountant

    def make_private(
        self,
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        data_loader: DataLoader[object],
        unit: RecordLevel | LocalRecordLevel,
        mechanism: DistributedNoise | None = None,
        clients: int | None = None,
        min_survivors: int | None = None,
        max_colluders: int | None = None,
        aggregate: Aggregate | None = None,
        ledger: PrivacyLedger | None = None,
        criterion: Callable[..., Tensor] | None = None,
        loss_reduction: str = "mean",
        grad_sample_mode: str = "hooks",
        physical_batch_size: int | None = None,
        **options: object,
    ) -> Private | GhostPrivate:
        """Make a client's training loop private at record level.

        Args:
            module: The model, called with tensors of one row per record, returning the same (`FixedRows`).
                `get_compatible_module` replaces layers that mix records.
            optimizer: Over exactly the trainable parameters of `module`.
            data_loader: Its data set and collate function are kept; its batches are replaced by secret Poisson ones.
            unit: What is protected, with the public rate and number of records.
            mechanism: The release of one round. Without it, it is calibrated to `unit` from the next three, or for a
                `LocalRecordLevel` unit from the unit alone.
            clients: Clients of the federation.
            min_survivors: Fewest contributions that a round accepts.
            max_colluders: Clients that may work with the adversary.
            aggregate: See `SecureDPOptimizer`.
            ledger: See `SecureDPOptimizer`.
            criterion: The loss, if it is a module: its `reduction` is then checked. Ghost clipping needs it.
            loss_reduction: Must be "sum", as the loss must be; the default of Opacus is refused.
            grad_sample_mode: "hooks", per-record gradients for `rounding="exact"`, or "ghost" for `rounding="sum"`.
            physical_batch_size: Rows that a training batch is laid out in; by default enough for nearly every draw.
                With a `BatchMemoryManager`, set both to the same size.
            options: Other options of Opacus, at the one value that is supported.

        Returns:
            The module, wrapped, with the same `state_dict` keys (`to_standard_module()` unwraps it); the optimizer;
            with "ghost" the criterion, on whose result `backward()` is to be called; the data loader, one pass of which
            is floor(1/q) rounds.

        Raises:
            ValueError: Something is unsupported, already private or inconsistent.
            UnsupportedModuleError: A layer mixes records or keeps statistics of them.
            UnaccountableError: This engine accounts for other data, or another accountant for these.
            CapacityError: No mechanism keeps the budget at this dimension.
        """
        if not isinstance(unit, RecordLevel | LocalRecordLevel):
            raise ValueError(
                f"unit must protect records (RecordLevel or LocalRecordLevel), got {type(unit).__name__}: a client's "
                "whole update needs no per-record gradients"
            )
        _check_options(options)
        _check_loss(loss_reduction, criterion)
        _check_module(module, optimizer)
        _check_mode(grad_sample_mode, unit, module, criterion)
        self.validate(module=module, optimizer=None, data_loader=None)
        dataset = data_loader.dataset
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, IndexedDataset):
            raise ValueError("Poisson sampling needs a data set with a length and indices, not an iterable one")
        self._bind(dataset)
        dimension = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        if isinstance(unit, LocalRecordLevel) and mechanism is None:
            mechanism = local_noise(unit, dimension=dimension)
        if mechanism is None:
            if clients is None or min_survivors is None or max_colluders is None:
                raise ValueError("give mechanism, or clients, min_survivors and max_colluders")
            mechanism = calibrate(
                unit,
                dimension=dimension,
                clients=clients,
                min_survivors=min_survivors,
                max_colluders=max_colluders,
            )
        elif any(number is not None for number in (clients, min_survivors, max_colluders)):
            raise ValueError("mechanism already fixes clients, min_survivors and max_colluders")
        private = SecureDPOptimizer(
            optimizer, unit=unit, mechanism=mechanism, accountant=self.accountant, aggregate=aggregate, ledger=ledger
        )
        length = len(dataset)
        sampler = SecretPoissonSampler(length, rate=unit.exact_rate, on_start=private.restart)
        reach = GHOST_ROW_REACH if unit.rounding == "sum" else ROW_REACH
        rows = physical_batch_size
        if rows is None:
            rows = default_rows(length, rate=unit.sampling_rate, reach=reach)
        loader = with_batches(data_loader, dataset=dataset, sampler=sampler)
        if grad_sample_mode == "ghost" and criterion is not None:
            ghost = GhostRows(module, rows=rows)
            return ghost, private, GhostLoss(ghost, private, criterion), loader
        return FixedRows(module, rows=rows), private, loader

    def make_private_with_epsilon(
        self,
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        data_loader: DataLoader[object],
        target_epsilon: float,
        target_delta: float,
        epochs: int,
        max_grad_norm: float,
        sampling_rate: float,
        records: int,
        clients: int,
        min_survivors: int,
        max_colluders: int,
        grad_sample_mode: str = "hooks",
        **options: Any,
    ) -> Private | GhostPrivate:
        """`make_private` in the words of Opacus: the unit is made from a target epsilon and a number of epochs.

        Args:
            module: As for `make_private`, like everything that is not explained here.
            optimizer: As for `make_private`.
            data_loader: As for `make_private`.
            target_epsilon: Budget over all epochs.
            target_delta: Its failure probability.
            epochs: Passes over the loader: floor(1/q) rounds each.
            max_grad_norm: L2 bound of one record's gradient.
            sampling_rate: Public rate q, the same for all clients. Never taken from the length of a loader, which tells
                the number of this client's records.
            records: Public, declared number of records of all clients.
            clients: As for `make_private`.
            min_survivors: As for `make_private`.
            max_colluders: As for `make_private`.
            grad_sample_mode: "hooks" rounds every record ("exact"), "ghost" the clipped sum ("sum").
            options: As for `make_private`.

        Raises:
            UnaccountableError: These records were in releases before: a new target would promise what is already spent.
            ValueError: As `make_private`.
        """
        self._bind(data_loader.dataset)
        if len(self.accountant):
            raise UnaccountableError(
                f"{len(self.accountant)} releases of these records are on record, at epsilon "
                f"{self.accountant.get_epsilon(target_delta):.4g}: a new target would not count them. Continue with "
                "make_private and the unit and mechanism that training began with"
            )
        if type(epochs) is not int or epochs < 1:
            raise ValueError(f"epochs must be an int >= 1, got {epochs!r}")
        if not 0 < sampling_rate <= 1:
            raise ValueError(f"sampling_rate must lie in (0, 1], got {sampling_rate!r}")
        unit = RecordLevel(
            clip_norm=max_grad_norm,
            epsilon=target_epsilon,
            delta=target_delta,
            rounds=epochs * math.floor(1 / Fraction(sampling_rate)),
            sampling_rate=sampling_rate,
            records=records,
            rounding="sum" if grad_sample_mode == "ghost" else "exact",
        )
        return self.make_private(
            module=module,
            optimizer=optimizer,
            data_loader=data_loader,
            unit=unit,
            clients=clients,
            min_survivors=min_survivors,
            max_colluders=max_colluders,
            grad_sample_mode=grad_sample_mode,
            **options,
        )

    def load_checkpoint(
        self,
        *,
        path: str | os.PathLike[str] | IO[bytes],
        module: nn.Module,
        optimizer: SecureDPOptimizer | None = None,
    ) -> dict[str, Any]:
        """Take over what `save_checkpoint` wrote: parameters, the optimizer's state and what was spent.

        Only tensors and plain values are read: a file that would run code is refused by PyTorch. Nothing is loaded
        before the budget is. An old checkpoint forgets what was spent after it: a `ledger` does not.

        Returns:
            What the file holds.

        Raises:
            UnaccountableError: It holds no budget, or releases are on record here already and would be forgotten.
        """
        checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
        if "privacy_accountant_state_dict" not in checkpoint:
            raise UnaccountableError("the checkpoint holds no budget: it was not written by save_checkpoint")
        self.accountant.load_state_dict(checkpoint["privacy_accountant_state_dict"])
        module.load_state_dict(checkpoint["module_state_dict"])
        if optimizer is not None and "optimizer_state_dict" in checkpoint:
            optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        return checkpoint

    def _bind(self, dataset: object) -> None:
        """Tie this engine to one data set, and the data set to one accountant."""
        if self.dataset is not None and self.dataset is not dataset:
            raise UnaccountableError("this engine accounts for another data set: take one engine per client")
        try:
            known = _accountants.setdefault(dataset, self.accountant)
        except TypeError:  # a list, say, cannot be remembered
            known = self.accountant
        if known is not self.accountant:
            if self._accountant_given or len(self.accountant):
                raise UnaccountableError("another accountant holds what was spent on this data set: pass that one")
            self.accountant = known
        self.dataset = dataset


def _check_options(options: Mapping[str, object]) -> None:
    """Opacus' options, at the values that keep the guarantee."""
    for name, value in options.items():
        if name not in _SUPPORTED:
            raise ValueError(f"unknown option {name}: clipping and noise come from unit and mechanism")
        if value != _SUPPORTED[name]:
            raise ValueError(f"{name} must be {_SUPPORTED[name]!r}, got {value!r}: nothing else is supported")


def _check_loss(loss_reduction: str, criterion: object) -> None:
    """Both the declaration and the criterion must say "sum"."""
    reductions = {"loss_reduction": loss_reduction, "criterion.reduction": _reduction(criterion) or "sum"}
    for name, reduction in reductions.items():
        if reduction != "sum":
            raise ValueError(
                f'{name} must be "sum", got {reduction!r}: a mean divides every record\'s gradient by the size of the '
                'secret batch. Build the loss with reduction="sum" and declare loss_reduction="sum"; the step is '
                "divided by the public expected batch size in any case"
            )


def _reduction(criterion: object) -> object:
    """What a loss module, or a partial of a function, says of itself; None if it says nothing."""
    keywords = criterion.keywords if isinstance(criterion, partial) else {}
    return keywords.get("reduction", getattr(criterion, "reduction", None))


def _check_mode(mode: str, unit: RecordLevel | LocalRecordLevel, module: nn.Module, criterion: object) -> None:
    """Each rounding has one way to get gradients."""
    wanted = {"exact": "hooks", "sum": "ghost"}[unit.rounding]
    if mode != wanted:
        raise ValueError(f"grad_sample_mode must be {wanted!r} with rounding {unit.rounding!r}, got {mode!r}")
    if mode == "hooks":
        return
    if criterion is None:
        raise ValueError("ghost clipping needs the criterion: pass it, and call backward() on what its wrapper returns")
    if _reduction(criterion) is None:
        raise ValueError(
            'the criterion does not say how it reduces: pass a loss module, or partial(function, reduction="sum"), or '
            'set its attribute reduction to "sum"'
        )
    names: dict[nn.Parameter, str] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, DPRNNBase):
            continue  # it lists the parameters of its cells once more
        for name, parameter in layer.named_parameters(prefix=path, recurse=False):
            if parameter.requires_grad and names.setdefault(parameter, name) != name:
                raise ValueError(
                    f"{names[parameter]} and {name} are tied: ghost clipping cannot norm their gradient; untie them, "
                    'or take rounding="exact" with grad_sample_mode="hooks"'
                )


def _check_module(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A plain local module that does not mix records, and a plain optimizer of all that it trains."""
    if isinstance(optimizer, DPOptimizer):
        raise ValueError("the optimizer is already private: keep it, or pass its original_optimizer")
    if isinstance(module, AbstractGradSampleModule) or hasattr(module, "autograd_grad_sample_hooks"):
        raise ValueError("the module is already private: keep it, or pass its to_standard_module()")
    if isinstance(module, _DISTRIBUTED):
        raise ValueError("a client trains in one process: pass the module without its distributed wrapper")
    trained = {entry for group in optimizer.param_groups for entry in group["params"] if entry.requires_grad}
    if trained != {parameter for parameter in module.parameters() if parameter.requires_grad}:
        raise ValueError("the optimizer must hold exactly the module's trainable parameters: freeze the others")
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            for option in ("max_norm", "scale_grad_by_freq", "sparse"):
                if getattr(layer, option):
                    raise UnsupportedModuleError(
                        [f"{name}: {option} changes weights or gradients by what is in the batch: turn it off"]
                    )
    for name, layer in module.named_modules():
        for kind, replacement in _REPLACEMENTS.items():
            if isinstance(layer, kind):
                raise UnsupportedModuleError(
                    [
                        f"{name or 'the module'} is {kind.__name__}, which mixes records or hides their gradients: use "
                        f"{replacement}, or SecurePrivacyEngine.get_compatible_module(module), which replaces all "
                        "such layers"
                    ]
                )
    # Opacus validates trainable layers only, but one without parameters mixes records just as well.
    errors = [
        problem
        for layer in module.modules()
        if isinstance(layer, _NormBase) and type(layer) in ModuleValidator.VALIDATORS
        for problem in ModuleValidator.VALIDATORS[type(layer)](layer)
    ]
    if errors:
        raise UnsupportedModuleError(errors)

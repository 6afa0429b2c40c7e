"""The bridge to Opacus: per-record gradients become noised integers, inside the user's own training loop.

Opacus computes per-record gradients and drives the loop; clipping ends in our integer check, and noise and accounting are
ours. Rules:

- Every record is clipped, rounded and checked on its own: its integers have norm at most `int_bound`, exactly. A record
  whose gradient is not finite counts as zero, locally: a refusal that others can see would tell them about it.
- Removing a record must change nothing else. A float kernel may give a row other last bits when the batch has another
  shape, so in training every batch is laid out in rows of a fixed number, records in random rows, the others blank. What
  is assumed of PyTorch is that in batches of equal shape a row's gradient does not depend on the values in other rows.
- For the same reason the loss must be a sum. A mean divides every record's gradient by the size of the secret batch.
- One round is one logical batch, one contribution, one event. It is accounted at its worst case before noise is drawn
  and corrected to the actual survivors when the aggregate is applied; a round that dies stays charged.
- Batches are drawn from the operating system's generator, never from PyTorch's, and an empty batch still sends its noise.
- One accountant for the life of a client. Within a process it is found again by the data set; across processes, save its
  `state_dict`.

Sources: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016 (per-record clipping, Poisson batches);
Yousefpour et al., "Opacus: User-Friendly Differential Privacy Library in PyTorch", 2021.

Example (`send` carries one vector into a round of the federation and returns the sum and the number of survivors):

    engine = SecurePrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader, aggregate=send, loss_reduction="sum",
        unit=RecordLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=200, sampling_rate=0.1, records=20_000),
        clients=20, min_survivors=15, max_colluders=2,
    )
    for features, labels in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(features), labels, reduction="sum").backward()
        optimizer.step()
    engine.get_epsilon(1e-6)
"""

import math
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np

from .accounting import SkellamEvent, epsilon
from .encoding import IntegerEncoder, _lower_norm
from .errors import UnaccountableError, UnsafeUpdateError
from .mechanisms import DistributedSkellam, NoisedIntegers, calibrate
from .samplers import FloatVector, Int64Vector, RandomBytes, secure_random
from .units import RecordLevel

try:
    import torch
    from opacus import PrivacyEngine
    from opacus.accountants import IAccountant, register_accountant
    from opacus.distributed import DifferentiallyPrivateDistributedDataParallel
    from opacus.grad_sample import AbstractGradSampleModule, GradSampleModule
    from opacus.optimizers import DPOptimizer
    from opacus.validators.module_validator import ModuleValidator
except ImportError as error:
    raise ImportError("record-level privacy needs PyTorch and Opacus: pip install 'secagg[torch]'") from error

from opacus.validators.errors import UnsupportedModuleError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, Sampler

Aggregate = Callable[[NoisedIntegers], tuple[Int64Vector, int]]
"""Carries one contribution through a round: returns the integer sum over the survivors, and how many survived."""

_TILE = 1 << 16  # gradient entries at a time: as float64 they stay in a core's cache
_ROW_GRID = (
    16  # batches are laid out in a multiple of this many rows, so that one record more or less seldom changes it
)
_ROW_REACH = 4  # standard deviations of the batch size that fit the layout; more records take a multiple of it

# Both are beside the point here: randomness is ours, and features that need no gradient are what training looks like.
_SECURE_MODE_WARNING = "Secure RNG turned off. This is perfectly fine for experimentation as it allows"
_BACKWARD_HOOK_WARNING = (
    "Full backward hook is firing when gradients are computed with respect to module outputs "
    "since no inputs require gradients."
)

_SUPPORTED: Final[Mapping[str, object]] = {
    "poisson_sampling": True,
    "clipping": "flat",
    "grad_sample_mode": "hooks",
    "batch_first": True,
    "wrap_model": True,
    "rand_on_empty": False,
    "noise_generator": None,
}
"""Opacus' options of `make_private` that have one right value here."""

_accountants: WeakKeyDictionary[object, "SkellamAccountant"] = WeakKeyDictionary()  # by data set


class SkellamAccountant(IAccountant):  # type: ignore[misc]  # Opacus is untyped
    """Counts the Skellam releases that touched one client's records. Opacus knows it as "skellam".

    It keeps events, not noise multipliers: epsilon is a view of them.
    """

    def __init__(self) -> None:
        self._counts: Counter[SkellamEvent] = Counter()

    @property
    def history(self) -> list[tuple[SkellamEvent, int]]:
        """Every distinct release and how often it was made."""
        return list(self._counts.items())

    def record(self, event: SkellamEvent) -> None:
        """Add one release."""
        self._counts[event] += 1

    def amend(self, recorded: SkellamEvent, actual: SkellamEvent) -> None:
        """Replace one recorded release by what it turned out to be.

        Raises:
            UnaccountableError: `recorded` is not on record.
        """
        if not self._counts[recorded]:
            raise UnaccountableError("the release to be amended is not on record")
        self._counts[actual] += 1
        self._counts[recorded] -= 1
        self._counts = +self._counts

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """Opacus' way to count a step. Refused: two floats do not state a Skellam release.

        Raises:
            UnaccountableError: Always.
        """
        raise UnaccountableError(
            f"noise_multiplier {noise_multiplier} and sample_rate {sample_rate} do not state a Skellam release: "
            "use record(event)"
        )

    def get_epsilon(self, delta: float) -> float:
        """Epsilon of all releases together, at `delta` in (0, 1)."""
        return epsilon(self._counts, delta=delta)

    def __len__(self) -> int:
        return self._counts.total()

    @classmethod
    def mechanism(cls) -> str:
        """Its name in Opacus' registry."""
        return "skellam"

    def state_dict(self, destination: MutableMapping[str, object] | None = None) -> MutableMapping[str, object]:
        """Everything on record, as plain JSON types."""
        destination = OrderedDict() if destination is None else destination
        destination["history"] = [[event.to_dict(), count] for event, count in self._counts.items()]
        destination["mechanism"] = self.mechanism()
        return destination

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """Take over what `state_dict` of another accountant returned.

        Raises:
            UnaccountableError: It is not such a state, or releases are already on record here and would be forgotten.
        """
        if self._counts:
            raise UnaccountableError(f"loading would forget {len(self)} recorded releases: load into a new accountant")
        history = state_dict.get("history")
        if state_dict.get("mechanism") != self.mechanism() or not isinstance(history, list):
            raise UnaccountableError(f"not the state of a Skellam accountant: keys {sorted(state_dict)}")
        counts: Counter[SkellamEvent] = Counter()
        for entry in history:
            match entry:
                case [dict(data), int(count)] if count > 0:
                    counts[SkellamEvent.from_dict(data)] += count
                case _:
                    raise UnaccountableError(f"not an event and its count: {entry!r}")
        self._counts = counts


register_accountant(SkellamAccountant.mechanism(), SkellamAccountant)


class SecretPoissonSampler(Sampler[list[int]]):
    """Draws Poisson batches that nobody else can predict. A `batch_sampler` for `torch.utils.data.DataLoader`.

    Each record enters each batch independently, when a secret 64-bit word is below floor(q·2^64): with probability q, or
    less by under 2^-64. `torch.manual_seed` has no influence. A batch may be empty.

    Args:
        length: Records of this client, >= 1.
        rate: Public rate q in (0, 1], the same for all clients.
        rand: Source of randomness; 8·length bytes are consumed per batch.
        on_start: Called when an iteration begins.

    Raises:
        ValueError: A value is outside its bound.
    """

    def __init__(
        self,
        length: int,
        *,
        rate: Fraction | float,
        rand: RandomBytes | None = None,
        on_start: Callable[[], None] | None = None,
    ) -> None:
        if length < 1:
            raise ValueError(f"length must be >= 1, got {length}")
        if not 0 < rate <= 1:
            raise ValueError(f"rate must lie in (0, 1], got {rate}")
        self.length = length
        self.rate = Fraction(rate)
        self._threshold = math.floor(self.rate * 2**64)
        self._rand = secure_random() if rand is None else rand
        self._on_start = on_start

    def __iter__(self) -> Iterator[list[int]]:
        if self._on_start is not None:
            self._on_start()
        for _ in range(len(self)):
            yield self.draw()

    def __len__(self) -> int:
        """Batches per pass: as many as use each record once on average."""
        return math.floor(1 / self.rate)

    def draw(self) -> list[int]:
        """One batch: increasing indices below `length`."""
        words = np.frombuffer(self._rand(8 * self.length), dtype="<u8")
        if self._threshold == 2**64:
            return list(range(self.length))
        indices: list[int] = np.flatnonzero(words < np.uint64(self._threshold)).tolist()
        return indices


class _CollateEmpty:
    """The user's collate function, extended to no records: the batch of one record, cut to zero rows."""

    def __init__(self, collate: Callable[[list[object]], object], dataset: Sequence[object]) -> None:
        self._collate = collate
        self._dataset = dataset

    def __call__(self, records: list[object]) -> object:
        return (
            self._collate(records)
            if records
            else _map_tensors(lambda tensor: tensor[:0], self._collate([self._dataset[0]]))
        )


class _FixedRows(GradSampleModule):  # type: ignore[misc]  # Opacus is untyped
    """Per-record gradients from batches of a fixed number of rows, whatever the number of records.

    In training, records are placed into random rows of a zero batch and their outputs are picked out again; blank rows
    get no gradient. Outside training it is the module itself. The keys of its `state_dict` are the module's own.
    """

    def __init__(self, module: nn.Module, *, rows: int) -> None:
        super().__init__(module, loss_reduction="sum")
        self.forbid_grad_accumulation()
        self.rows = rows

    def forward(self, *args: object, **kwargs: object) -> object:
        if not (self.training and torch.is_grad_enabled()):
            return self._module(*args, **kwargs)
        lengths = {value.shape[:1] for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
        if len(lengths) != 1 or lengths == {()}:
            raise UnsafeUpdateError(
                f"the model must be called with tensors of one row per record, got leading sizes {sorted(lengths)}"
            )
        count = lengths.pop()[0]
        total = self.rows * max(1, math.ceil(count / self.rows))
        places = torch.from_numpy(_random_places(count, total, rand=secure_random()))

        def place(value: object) -> object:
            if not isinstance(value, Tensor):
                return value
            return value.new_zeros(total, *value.shape[1:]).index_copy(0, places.to(value.device), value)

        def pick(value: Tensor) -> Tensor:
            if value.shape[:1] != (total,):
                raise UnsafeUpdateError(f"the model must return one row per record, got shape {tuple(value.shape)}")
            return value.index_select(0, places.to(value.device))

        outputs = self._module(
            *(place(value) for value in args), **{key: place(value) for key, value in kwargs.items()}
        )
        return _map_tensors(pick, outputs)

    def state_dict(self, *args: object, **kwargs: object) -> object:
        """The wrapped module's state, under its own keys."""
        return self._module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: object, **kwargs: object) -> object:
        """Load a state of the unwrapped module."""
        return self._module.load_state_dict(*args, **kwargs)


class SecureDPOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus is untyped
    """Wraps a PyTorch optimizer: gradients leave as noised integers, and it steps on the sum over all clients.

    Guarantee: what leaves in one round, summed over the survivors, is the release that `mechanism.event(survivors=...)`
    states: adding or removing one record moves the integer sum by at most `mechanism.int_bound` in L2.

    With `aggregate` given, `step()` does a whole round, so an ordinary loop works unchanged. Without it, a round is
    `contribution()`, then, when the sum has arrived, `apply()`; `step()` is only for those physical batches after which
    `more_to_come` says that the logical batch continues.

    Attributes:
        unit: What is protected.
        mechanism: The release of one round.
        accountant: Holds every round at its worst case from the contribution on, at its survivors once applied.
        rejected_records: Rows so far whose gradient was not finite; they counted as zero. Local: publishing it is a leak.

    Args:
        optimizer: The optimizer to wrap. Its trainable parameters, in order, are the coordinates of the sum.
        unit: Clip norm, rate and public number of records.
        mechanism: As calibrated for `unit` and these parameters; the same at every client.
        accountant: The client's one accountant.
        aggregate: Carries a contribution through a round, blocking. If it raises, the round stays charged and is over.

    Raises:
        ValueError: `mechanism` is not for this unit or not for these parameters.
        CapacityError: Its `int_bound` is below 8·√d.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        unit: RecordLevel,
        mechanism: DistributedSkellam,
        accountant: SkellamAccountant,
        aggregate: Aggregate | None = None,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=unit.clip_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        dimension = sum(parameter.numel() for parameter in self.params)
        if mechanism.dimension != dimension:
            raise ValueError(f"mechanism is for {mechanism.dimension} coordinates, the model trains {dimension}")
        if mechanism.sampling_rate != unit.exact_rate:
            raise ValueError(f"mechanism has rate {mechanism.sampling_rate}, the unit {unit.exact_rate}")
        self.unit = unit
        self.mechanism = mechanism
        self.accountant = accountant
        self.aggregate = aggregate
        self.rejected_records = 0
        self._encoder = IntegerEncoder(clip_norm=unit.clip_norm, int_bound=mechanism.int_bound)
        self._encoder._require_capacity(dimension)
        self._rand = secure_random()
        self._coins: FloatVector | None = None
        self._sum: FloatVector = np.zeros(dimension)
        self._in_flight: SkellamEvent | None = None

    @property
    def accumulated_iterations(self) -> int:
        """Always 1: a logical batch is one Poisson draw."""
        return 1

    @property
    def more_to_come(self) -> bool:
        """Whether the logical batch continues after the present physical one (`BatchMemoryManager`)."""
        return bool(self._check_skip_next_step(pop_next=False))

    def clip_and_accumulate(self) -> None:
        """Encode the physical batch and add it to the logical one. Its gradients are used up.

        Raises:
            UnsafeUpdateError: Gradients of several backward passes, of unequal numbers of records, or none for a parameter.
        """
        self._accumulate(rand=self._rand)

    def contribution(self, *, rand: RandomBytes | None = None) -> NoisedIntegers:
        """End the logical batch: its integer sum plus this client's noise share. Once per round.

        Without a backward pass since the last round, the batch was empty: the contribution is noise alone.

        Args:
            rand: Source of coins and noise; by default the optimizer's own secure stream.

        Returns:
            int64[d] behind a type that says that noise was added.

        Raises:
            UnaccountableError: The last contribution was not applied yet, the logical batch continues, or a scheduler changed
                the noise or the clip norm.
            UnsafeUpdateError: As `clip_and_accumulate`.
        """
        if self._in_flight is not None:
            raise UnaccountableError(
                "this round's contribution was already made: call apply() with the sum, or abandon() if the round died"
            )
        if self.more_to_come:
            raise UnaccountableError("the logical batch continues: call step() until more_to_come is false")
        if (self.noise_multiplier, self.max_grad_norm) != (self.mechanism.noise_multiplier, self.unit.clip_norm):
            raise UnaccountableError("noise and clip norm are fixed by the mechanism: remove the scheduler")
        rand = self._rand if rand is None else rand
        self._check_skip_next_step()
        self._is_last_step_skipped = False
        self._accumulate(rand=rand)
        integers = self._sum.astype(np.int64)
        self._drop_batch()
        reserved = self.mechanism.event(survivors=self.mechanism.min_survivors)
        self.accountant.record(reserved)
        self._in_flight = reserved
        return self.mechanism.privatize(integers, rand=rand)

    def apply(self, total: Int64Vector, *, survivors: int) -> None:
        """Step the wrapped optimizer on the aggregate and account the round at its survivors.

        The gradient is the decoded sum over q·records·survivors/clients, a public number: every client that applies the
        same sum makes the same step, bit for bit.

        Args:
            total: int64[d], the sum of the survivors' contributions.
            survivors: How many there were.

        Raises:
            UnaccountableError: No contribution is under way, or fewer survivors than a round accepts. The round stays charged.
            UnsafeUpdateError: `total` has the wrong dtype or shape.
            ValueError: More survivors than clients.
        """
        if self._in_flight is None:
            raise UnaccountableError("no contribution is under way: call contribution() first")
        if total.dtype != np.int64 or total.shape != (self.mechanism.dimension,):
            raise UnsafeUpdateError(
                f"total must be int64[{self.mechanism.dimension}], got {total.dtype}{list(total.shape)}"
            )
        event = self.mechanism.event(survivors=survivors)
        expected = self.unit.exact_rate * self.unit.records * survivors / self.mechanism.clients
        mean = torch.from_numpy(self._encoder.decode(total, denominator=float(expected)))
        self.accountant.amend(self._in_flight, event)
        self._in_flight = None
        for parameter, part in zip(self.params, mean.split([p.numel() for p in self.params]), strict=True):
            parameter.grad = part.view(parameter.shape).to(parameter)
        if self.step_hook:
            self.step_hook(self)
        self.original_optimizer.step()
        self.zero_grad(set_to_none=True)

    def abandon(self) -> None:
        """Give up the round under way, if any: nothing is applied, and it stays charged at its worst case."""
        self._in_flight = None
        self.restart()

    def restart(self) -> None:
        """Forget a logical batch that was not finished, so that no record enters one contribution twice."""
        self._step_skip_queue.clear()
        self._is_last_step_skipped = False
        self._drop_batch()
        self.zero_grad(set_to_none=True)

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One round through `aggregate`, or, within a logical batch that continues, one more physical batch.

        Raises:
            UnaccountableError: A round is due and there is no `aggregate`.
            UnsafeUpdateError: As `clip_and_accumulate`.
        """
        if closure is not None:
            with torch.enable_grad():
                closure()
        if self.more_to_come:
            self._check_skip_next_step()
            self._is_last_step_skipped = True
            self.clip_and_accumulate()
            return
        if self.aggregate is None:
            raise UnaccountableError(
                "there is no aggregate to step on: send contribution() and pass the sum to apply(), or give make_private an "
                "`aggregate` that does both ends"
            )
        share = self.contribution()
        with ExitStack() as on_failure:
            on_failure.callback(self.abandon)
            total, survivors = self.aggregate(share)
            on_failure.pop_all()
        self.apply(total, survivors=survivors)

    def _accumulate(self, *, rand: RandomBytes) -> None:
        """Encode what the last backward pass left. Coins are shared by all records of a logical batch."""
        gradients = [getattr(parameter, "grad_sample", None) for parameter in self.params]
        if all(gradient is None for gradient in gradients):
            return
        for index, gradient in enumerate(gradients):
            if gradient is None:
                shape = tuple(self.params[index].shape)
                raise UnsafeUpdateError(
                    f"parameter {index} of shape {shape} took no part in the loss: freeze it with requires_grad_(False)"
                )
            if not isinstance(gradient, Tensor):
                raise UnsafeUpdateError("gradients of several backward passes are mixed: step after each")
        if len({len(gradient) for gradient in gradients}) != 1:
            raise UnsafeUpdateError("parameters disagree on the number of records: one row per record is needed")
        if self._coins is None:
            self._coins = np.frombuffer(rand(4 * self.mechanism.dimension), dtype="<u4") * 2.0**-32
        integers, rejected = _encode_rows(
            [gradient.flatten(1) if gradient.ndim > 1 else gradient[:, None] for gradient in gradients],
            coins=self._coins,
            encoder=self._encoder,
        )
        self._sum += integers
        self.rejected_records += rejected
        for parameter in self.params:
            parameter.grad_sample = None

    def _drop_batch(self) -> None:
        """Start the next logical batch, with fresh coins."""
        self._coins = None
        self._sum.fill(0)


class SecurePrivacyEngine(PrivacyEngine):  # type: ignore[misc]  # Opacus is untyped
    """Opacus' `PrivacyEngine` for one client of a federation: `make_private`, an ordinary loop, `get_epsilon`.

    Args:
        accountant: The client's accountant, if it has one from before. By default the one that this process already keeps
            for the data set, else a new one.

    Raises:
        ValueError: `secure_mode` is asked for. All randomness that matters is secure; Opacus' mode is not.
    """

    def __init__(self, *, accountant: SkellamAccountant | None = None, secure_mode: bool = False) -> None:
        if secure_mode:
            raise ValueError("secure_mode is Opacus' own generator; noise and batches are always drawn securely here")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=re.escape(_SECURE_MODE_WARNING))
            super().__init__(accountant=SkellamAccountant.mechanism())
        self._accountant_given = accountant is not None
        if accountant is not None:
            self.accountant = accountant

    def make_private(
        self,
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        data_loader: DataLoader[object],
        unit: RecordLevel,
        mechanism: DistributedSkellam | None = None,
        clients: int | None = None,
        min_survivors: int | None = None,
        max_colluders: int | None = None,
        aggregate: Aggregate | None = None,
        criterion: nn.Module | None = None,
        loss_reduction: str = "mean",
        physical_batch_size: int | None = None,
        **options: object,
    ) -> tuple[nn.Module, SecureDPOptimizer, DataLoader[object]]:
        """Make a client's training loop private at record level.

        Args:
            module: The model, called with tensors whose first dimension is the record, returning the same. `get_compatible_module`
                replaces layers that mix records.
            optimizer: Over exactly the trainable parameters of `module`.
            data_loader: Its data set and collate function are kept; its batches are replaced by secret Poisson ones.
            unit: What is protected, with the public rate and number of records.
            mechanism: The release of one round. Without it, it is calibrated to `unit` from the next three.
            clients: Clients of the federation.
            min_survivors: Fewest contributions that a round accepts.
            max_colluders: Clients that may work with the adversary.
            aggregate: See `SecureDPOptimizer`.
            criterion: The loss module, if there is one: its `reduction` is then checked.
            loss_reduction: Must be "sum", and so must the loss be: the default of Opacus, "mean", is refused.
            physical_batch_size: Rows that a training batch is laid out in. By default enough for nearly every draw. Set it when a
                `BatchMemoryManager` is used, to its size.
            options: Other options of Opacus, accepted at the one value that is supported.

        Returns:
            The module, wrapped, with unchanged `state_dict` keys (`to_standard_module()` unwraps it); the optimizer; and the data
            loader, one pass of which is floor(1/q) rounds.

        Raises:
            ValueError: Something is not supported, already private, or inconsistent; the message names the way out.
            UnsupportedModuleError: A layer mixes records or keeps statistics of them.
            UnaccountableError: The data set is or was accounted elsewhere.
            CapacityError: No mechanism keeps the budget at this dimension.
        """
        _check_options(options)
        _check_loss(loss_reduction, criterion)
        _check_module(module, optimizer)
        self.validate(module=module, optimizer=None, data_loader=None)
        dataset = data_loader.dataset
        if isinstance(dataset, IterableDataset):
            raise ValueError("Poisson sampling needs a data set with indices, not an IterableDataset")
        self._bind(dataset)
        if mechanism is None:
            if clients is None or min_survivors is None or max_colluders is None:
                raise ValueError("give mechanism, or clients, min_survivors and max_colluders")
            mechanism = calibrate(
                unit,
                dimension=sum(p.numel() for p in module.parameters() if p.requires_grad),
                clients=clients,
                min_survivors=min_survivors,
                max_colluders=max_colluders,
            )
        elif not clients is min_survivors is max_colluders is None:
            raise ValueError("mechanism already fixes clients, min_survivors and max_colluders")
        private_optimizer = SecureDPOptimizer(
            optimizer, unit=unit, mechanism=mechanism, accountant=self.accountant, aggregate=aggregate
        )
        length = len(dataset)
        sampler = SecretPoissonSampler(length, rate=unit.exact_rate, on_start=private_optimizer.restart)
        rows = _default_rows(length, unit.sampling_rate) if physical_batch_size is None else physical_batch_size
        warnings.filterwarnings("ignore", message=re.escape(_BACKWARD_HOOK_WARNING))
        return _FixedRows(module, rows=rows), private_optimizer, _with_batches(data_loader, sampler)

    def make_private_with_epsilon(self, **_: object) -> None:
        """Refused: `make_private` already calibrates to the budget of the unit.

        Raises:
            ValueError: Always.
        """
        raise ValueError("make_private calibrates to unit.epsilon over unit.rounds: use it")

    def _bind(self, dataset: object) -> None:
        """Tie this engine to one data set, and the data set to one accountant."""
        if self.dataset is not None and self.dataset is not dataset:
            raise UnaccountableError("this engine accounts for another data set: one engine for each client's data")
        try:
            known = _accountants.setdefault(dataset, self.accountant)
        except TypeError:  # a list, say, cannot be remembered
            known = self.accountant
        if known is not self.accountant:
            if self._accountant_given or len(self.accountant):
                raise UnaccountableError(
                    "the data set is accounted elsewhere: SecurePrivacyEngine(accountant=that one)"
                )
            self.accountant = known
        self.dataset = dataset


def _check_options(options: Mapping[str, object]) -> None:
    """Opacus' options, at the values that keep the guarantee."""
    for name, value in options.items():
        if name not in _SUPPORTED:
            raise ValueError(f"unknown option {name}: clipping and noise come from unit and mechanism")
        if value != _SUPPORTED[name]:
            raise ValueError(f"{name} must be {_SUPPORTED[name]!r}, got {value!r}: nothing else is supported")


def _check_loss(loss_reduction: str, criterion: nn.Module | None) -> None:
    """Both the declaration and the criterion must say "sum"."""
    for name, reduction in (
        ("loss_reduction", loss_reduction),
        ("criterion.reduction", getattr(criterion, "reduction", "sum")),
    ):
        if reduction != "sum":
            raise ValueError(
                f'{name} must be "sum", got {reduction!r}: a mean divides every record\'s gradient by the size of the secret '
                'batch. Build the loss with reduction="sum" and say loss_reduction="sum"; the step is divided by the expected '
                "batch size anyway"
            )


def _check_module(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A plain local module that does not mix records, and a plain optimizer of all that it trains."""
    if isinstance(optimizer, DPOptimizer):
        raise ValueError("the optimizer is already private: keep it, or wrap its original_optimizer anew")
    if isinstance(module, AbstractGradSampleModule) or hasattr(module, "autograd_grad_sample_hooks"):
        raise ValueError("the module is already private: keep it, or unwrap it with to_standard_module()")
    if isinstance(
        module,
        DistributedDataParallel | FullyShardedDataParallel | FSDPModule | DifferentiallyPrivateDistributedDataParallel,
    ):
        raise ValueError("a client trains in one process: pass the module without its distributed wrapper")
    trained = {
        parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad
    }
    if trained != {parameter for parameter in module.parameters() if parameter.requires_grad}:
        raise ValueError("the optimizer must hold exactly the module's trainable parameters: freeze the others")
    # Opacus looks at trainable layers only, but a frozen one mixes records just as well.
    errors = [
        problem
        for layer in module.modules()
        if isinstance(layer, _NormBase) and type(layer) in ModuleValidator.VALIDATORS
        for problem in ModuleValidator.VALIDATORS[type(layer)](layer)
    ]
    if errors:
        raise UnsupportedModuleError(errors)


def _default_rows(length: int, rate: float) -> int:
    """Rows that nearly every Poisson draw fits."""
    mean = length * rate
    return _ROW_GRID * math.ceil((mean + _ROW_REACH * math.sqrt(mean * (1 - rate))) / _ROW_GRID)


def _random_places(count: int, total: int, *, rand: RandomBytes) -> Int64Vector:
    """`count` distinct rows out of `total`, uniformly."""
    return np.argsort(np.frombuffer(rand(8 * total), dtype="<u8"), kind="stable")[:count]


def _with_batches(loader: DataLoader[object], sampler: SecretPoissonSampler) -> DataLoader[object]:
    """The same loader over other batches."""
    return DataLoader(
        loader.dataset,
        batch_sampler=sampler,
        collate_fn=_CollateEmpty(loader.collate_fn, loader.dataset),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _map_tensors(function: Callable[[Tensor], Tensor], value: object) -> object:
    """Apply `function` to every tensor in tuples, lists and dictionaries."""
    match value:
        case Tensor():
            return function(value)
        case dict():
            return {key: _map_tensors(function, item) for key, item in value.items()}
        case list() | tuple():
            items = [_map_tensors(function, item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        case _:
            raise UnsafeUpdateError(f"expected tensors, tuples, lists or dictionaries, got {type(value).__name__}")


def _encode_rows(
    gradients: Sequence[Tensor], *, coins: FloatVector, encoder: IntegerEncoder
) -> tuple[FloatVector, int]:
    """Clip, round and check every row on its own, by the rules of `IntegerEncoder`, and add the integers.

    Args:
        gradients: per parameter float[rows, size]; together one row is one record's gradient.
        coins: float64[d] in [0, 1), shared by all rows, independent of the data.
        encoder: Bound and clip norm.

    Returns:
        float64[d], integers, and the number of rows that are not finite. Every row adds a vector of norm at most `int_bound`.
    """
    rows, length = len(gradients[0]), coins.size
    total = np.zeros(length)
    # Over all rows, blank ones too: the shape of a float reduction must not depend on the number of records.
    squared = torch.zeros(rows, dtype=torch.float64)
    for _, tile in _tiles(gradients):
        squared += tile.double().square_().sum(1).cpu()
    finite = torch.isfinite(squared)
    kept = torch.nonzero(finite & (squared > 0)).flatten()
    scale = encoder.int_bound / encoder.clip_norm
    factors = scale * (encoder._first_clip(length) / squared[kept].sqrt()).clamp(max=1.0)[:, None]
    # From here on every operation is elementwise or on integers below 2^53: exact in any shape and order.
    squared_integers = torch.zeros(len(kept), dtype=torch.float64)
    for columns, tile in _tiles(gradients):
        integers = _round_rows(tile, kept, factors, coins[columns])
        total[columns] += integers.sum(0).cpu().numpy()
        squared_integers += integers.square_().sum(1).cpu()
    for row in torch.nonzero(squared_integers > encoder.int_bound**2).flatten():
        long = np.empty(length)
        for columns, tile in _tiles(gradients):
            long[columns] = _round_rows(tile, kept[row, None], factors[row, None], coins[columns])[0].cpu().numpy()
        total -= long
        total += _lower_norm(long, bound=encoder.int_bound)
    return total, rows - int(finite.sum())


def _round_rows(tile: Tensor, rows: Tensor, factors: Tensor, coins: FloatVector) -> Tensor:
    """The integers of the chosen rows of a tile, as float64."""
    device = tile.device
    scaled = tile[rows.to(device)].double().mul_(factors.to(device))
    return scaled.add_(torch.from_numpy(coins).to(device)).floor_()


def _tiles(gradients: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Column blocks of all parameters, each with its place in the flat vector."""
    width = max(1, _TILE // max(1, len(gradients[0])))
    offset = 0
    for gradient in gradients:
        for tile in gradient.split(width, dim=1):
            yield slice(offset, offset + tile.shape[1]), tile
            offset += tile.shape[1]

"""Secret batches, and their layout for training.

Rules:

- Who is in a batch is decided by our generator, record by record, and told to nobody.
- In training the model sees a batch of one fixed shape, whatever the draw: the records lie in distinct random rows, the
  other rows are zero. Then removing a record leaves every other record in its row of a batch of the same shape, where
  its gradient comes out bit for bit the same. Without this, products of matrices of other heights round differently:
  measured on one processor, for batches of up to ten rows.
- A draw that does not fit takes a multiple of the rows. Such a batch, and one that a `BatchMemoryManager` splits, keeps
  the integer bound on every record, but rests for the rest on rows of other batch shapes agreeing.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from ..errors import UnsafeUpdateError
from ..samplers import Int64Vector, RandomBytes, poisson_draw, secure_random

_BACKWARD_HOOK_WARNING = (  # beside the point: records are not trained, so they need no gradient
    "Full backward hook is firing when gradients are computed with respect to module outputs since no inputs require "
    "gradients."
)
_ROW_GRID = 16  # one record more or less seldom changes the number of rows
ROW_REACH = 4  # standard deviations of the batch size for which there are rows
GHOST_ROW_REACH = 7  # with rounding "sum" a batch of more rows may be refused: one in 10^12 is


@runtime_checkable
class IndexedDataset(Protocol):
    """A data set whose records have numbers."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> object: ...


class SecretPoissonSampler(Sampler[list[int]]):
    """Draws Poisson batches that nobody else can predict. A `batch_sampler` for `torch.utils.data.DataLoader`.

    Each record enters each batch independently, when a secret 64-bit word is below floor(q·2^64): with probability q,
    or less by under 2^-64. `torch.manual_seed` has no influence. A batch may be empty.

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
        self._rand = secure_random() if rand is None else rand
        self._on_start = on_start

    def __iter__(self) -> Iterator[list[int]]:
        if self._on_start is not None:
            self._on_start()
        for _ in range(len(self)):
            yield self.draw()

    def __len__(self) -> int:
        """Batches per pass: as many as use each record once on average, rounded down."""
        return math.floor(1 / self.rate)

    def draw(self) -> list[int]:
        """One batch: increasing indices below `length`."""
        indices: list[int] = poisson_draw(self.length, rate=self.rate, rand=self._rand).tolist()
        return indices


class RowLayout:
    """What `FixedRows` and `ghost.GhostRows` share: how a batch is laid out, and whose keys a state has."""

    _module: Any
    training: bool
    hooks_enabled: bool
    _total: int

    def lay_out(self, rows: int) -> None:
        """Set the rows per training batch, >= 1.

        Raises:
            ValueError: `rows` is outside its bound.
        """
        if rows < 1:
            raise ValueError(f"rows must be >= 1, got {rows}")
        warnings.filterwarnings("ignore", message=re.escape(_BACKWARD_HOOK_WARNING))
        self.rows = rows

    def forward(self, *args: object, **kwargs: object) -> object:
        """Call the module on the records.

        Raises:
            UnsafeUpdateError: An input or output tensor does not have one row per record.
        """
        if not (self.training and torch.is_grad_enabled()):
            return self._module(*args, **kwargs)
        heads = {tuple(value.shape[:1]) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
        if len(heads) != 1 or heads == {()}:
            raise UnsafeUpdateError(f"every tensor must have one row per record, got leading sizes {sorted(heads)}")
        (count,) = heads.pop()
        total = self.rows * max(1, math.ceil(count / self.rows))
        places = torch.from_numpy(random_places(count, total, rand=secure_random()))
        return self.run_placed(args, kwargs, places=places, total=total)

    def run_placed(
        self, args: tuple[object, ...], kwargs: Mapping[str, object], *, places: Tensor, total: int
    ) -> object:
        """Call the module on records in the given rows of a batch of `total` rows, and pick their outputs."""

        def place(value: object) -> object:
            if not isinstance(value, Tensor):
                return value
            return value.new_zeros(total, *value.shape[1:]).index_copy(0, places.to(value.device), value)

        def pick(value: Tensor) -> Tensor:
            if tuple(value.shape[:1]) != (total,):
                raise UnsafeUpdateError(f"the model must return one row per record, got shape {tuple(value.shape)}")
            return value.index_select(0, places.to(value.device))

        self._total = total
        outputs = self._module(
            *(place(value) for value in args), **{name: place(value) for name, value in kwargs.items()}
        )
        return map_tensors(pick, outputs)

    def capture_activations_hook(self, module: nn.Module, forward_input: list[Tensor], forward_output: Any) -> None:
        """Opacus' hook, for layers that see one row per record alone: it takes every row of a layer for a record.

        Raises:
            UnsafeUpdateError: A trained layer has rows of another number.
        """
        if self.hooks_enabled and module.training and torch.is_grad_enabled():
            for value in (*forward_input[:1], forward_output):
                if isinstance(value, Tensor) and tuple(value.shape[:1]) != (self._total,):
                    raise UnsafeUpdateError(
                        f"{type(module).__name__} got or gave shape {tuple(value.shape)} in a batch of {self._total} "
                        "rows: each of its rows would count as a record of its own. Keep one leading row per record "
                        "through every trained layer"
                    )
        super().capture_activations_hook(module, forward_input, forward_output)  # type: ignore[misc]

    def state_dict(self, *args: object, **kwargs: object) -> object:
        """The state of the wrapped module, under its own keys."""
        return self._module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: object, **kwargs: object) -> object:
        """Load a state of the wrapped module."""
        return self._module.load_state_dict(*args, **kwargs)


class FixedRows(RowLayout, GradSampleModule):  # type: ignore[misc]  # Opacus is untyped
    """Opacus' per-record gradients, from training batches of a fixed number of rows.

    Outputs are picked out again, so the caller sees its own records only, and blank rows get no gradient. Outside
    training it is the module itself. The keys of its `state_dict` are the module's own.

    Args:
        module: Called with tensors of one row per record (and other values, which pass through); returns tensors of one
            row per record, alone or in tuples, lists and dictionaries.
        rows: Rows per training batch, >= 1.

    Raises:
        ValueError: `rows` is outside its bound.
        NotImplementedError: A trained layer has buffers, which Opacus does not support.
    """

    def __init__(self, module: nn.Module, *, rows: int) -> None:
        super().__init__(module, loss_reduction="sum")
        self.forbid_grad_accumulation()
        self.lay_out(rows)


def default_rows(length: int, *, rate: float, reach: float = ROW_REACH) -> int:
    """Rows that nearly every Poisson draw fits: up to `reach` standard deviations above its mean."""
    mean = length * rate
    return _ROW_GRID * math.ceil((mean + reach * math.sqrt(mean * (1 - rate))) / _ROW_GRID)


def with_batches(
    loader: DataLoader[object], *, dataset: IndexedDataset, sampler: SecretPoissonSampler
) -> DataLoader[object]:
    """The same loader over the sampler's batches; an empty one has the structure of the others and no rows."""
    return DataLoader(
        loader.dataset,
        batch_sampler=sampler,
        collate_fn=_CollateEmpty(loader.collate_fn, dataset),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


class _CollateEmpty:
    """The user's collate function, extended to no records: the batch of one record, cut to zero rows."""

    def __init__(self, collate: Callable[[list[object]], object], dataset: IndexedDataset) -> None:
        self._collate = collate
        self._dataset = dataset

    def __call__(self, records: list[object]) -> object:
        if records:
            return self._collate(records)
        return map_tensors(lambda tensor: tensor[:0], self._collate([self._dataset[0]]))


def map_tensors(function: Callable[[Tensor], Tensor], value: object) -> object:
    """Apply `function` to every tensor in tuples, lists and dictionaries.

    Raises:
        UnsafeUpdateError: Something else is in there.
    """
    match value:
        case Tensor():
            return function(value)
        case dict():
            return {name: map_tensors(function, item) for name, item in value.items()}
        case tuple() if hasattr(value, "_make"):  # a named tuple
            return value._make(map_tensors(function, item) for item in value)
        case tuple():
            return tuple(map_tensors(function, item) for item in value)
        case list():
            return [map_tensors(function, item) for item in value]
        case _:
            raise UnsafeUpdateError(f"expected tensors, tuples, lists or dictionaries, got {type(value).__name__}")


def random_places(count: int, total: int, *, rand: RandomBytes) -> Int64Vector:
    """`count` distinct rows out of `total`, uniformly; fewer records take a prefix of the same places."""
    return np.argsort(np.frombuffer(rand(8 * total), dtype="<u8"), kind="stable")[:count]

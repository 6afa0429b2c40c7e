"""Per-record gradients in, noised integers out, and a step on their sum over all clients.

Rules:

- The integers of a record depend on its own gradient and on coins that are shared by all records of a logical batch and
  depend on no data. So, for the same coins, removing a record moves the integer sum by exactly its integers.
- A round is charged before its noise is drawn. Nothing that happens afterwards can make it free.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from io import BytesIO

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from ..accounting import SkellamEvent
from ..encoding import IntegerEncoder, lower_norm
from ..errors import UnaccountableError, UnsafeUpdateError
from ..mechanisms import DistributedSkellam, NoisedIntegers
from ..rotation import Rotation
from ..samplers import FloatVector, Int64Vector, RandomBytes, secure_random
from ..units import RecordLevel
from .accountant import SkellamAccountant

Aggregate = Callable[[NoisedIntegers], tuple[Int64Vector, int]]
"""Carries one contribution through a round: returns the integer sum over the survivors, and how many survived."""

_TILE = 1 << 16  # gradient entries at a time: as float64 they stay in a core's cache


class SecureDPOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus is untyped
    """Wraps a PyTorch optimizer: gradients leave as noised integers, and it steps on the sum over all clients.

    Guarantee: what leaves in one round, summed over the survivors, is the release that `mechanism.event(survivors=...)`
    states. Adding or removing one record moves the integer sum by at most `mechanism.int_bound` in L2.

    With `aggregate` given, `step()` does a whole round, so an ordinary loop works unchanged. Without it, a round is
    `contribution()` and, when the sum has arrived, `apply()`; `step()` is then only for those physical batches at which
    `more_to_come` says that the logical batch continues. A learning-rate scheduler goes on `original_optimizer`.

    Attributes:
        unit: What is protected.
        mechanism: The release of one round.
        accountant: Holds every round at its worst case from the contribution on, and at its survivors once applied.
        rejected_records: Rows so far whose gradient was not finite; they counted as zero. Publishing it is a leak.

    Args:
        optimizer: The optimizer to wrap. Its trainable parameters, in order, are the coordinates of the sum. Per-record
            gradients must be those of a sum of losses, over batches from one `SecretPoissonSampler`.
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
            raise ValueError(f"mechanism is for {mechanism.dimension} coordinates, the optimizer trains {dimension}")
        if mechanism.sampling_rate != unit.exact_rate:
            raise ValueError(f"mechanism has sampling rate {mechanism.sampling_rate}, the unit {unit.exact_rate}")
        self.unit = unit
        self.mechanism = mechanism
        self.accountant = accountant
        self.aggregate = aggregate
        self.rejected_records = 0
        self._encoder = IntegerEncoder(clip_norm=unit.clip_norm, int_bound=mechanism.int_bound)
        self._encoder.require_capacity(dimension)
        self._rand = secure_random()
        self._coins: FloatVector | None = None
        self._sum: FloatVector = np.zeros(dimension)
        self._rotation: Rotation | None = None
        self._seed = b""
        self._in_flight: SkellamEvent | None = None

    @property
    def accumulated_iterations(self) -> int:
        """Always 1: a logical batch is one Poisson draw."""
        return 1

    @property
    def more_to_come(self) -> bool:
        """Whether the logical batch continues after the present physical one (`BatchMemoryManager`)."""
        return bool(self._check_skip_next_step(pop_next=False))

    def rotate(self, seed: bytes) -> None:
        """From the next logical batch on, rotate every record's clipped gradient before it is rounded.

        For rings too small for one heavy coordinate. `apply` turns the sum back.

        Args:
            seed: Public, the same at all clients and each round's own; empty for no rotation.

        Raises:
            UnaccountableError: A logical batch or a contribution is under way in another rotation.
        """
        if self._in_flight is not None or self._coins is not None:
            raise UnaccountableError("a batch or contribution is under way: rotate before a round's first batch")
        self._seed = seed
        self._rotation = Rotation(self._sum.size, seed=seed) if seed else None

    def clip_and_accumulate(self) -> None:
        """Encode the physical batch and add it to the logical one. Its gradients are used up.

        Raises:
            UnsafeUpdateError: A parameter took no part in the loss, or gradients are not those of one batch.
        """
        self._accumulate(rand=self._rand)

    def contribution(self, *, rand: RandomBytes | None = None) -> NoisedIntegers:
        """End the logical batch: its integer sum plus this client's noise share. Once per round.

        Without a backward pass since the last round, the batch was empty: the contribution is noise alone.

        Args:
            rand: Source of coins and noise; by default the optimizer's own secure stream.

        Returns:
            int64[d], as the type that noise has been added to.

        Raises:
            UnaccountableError: The last contribution is still under way, the logical batch continues, or a scheduler
                changed the noise or the clip norm.
            UnsafeUpdateError: As `clip_and_accumulate`.
        """
        if self._in_flight is not None:
            raise UnaccountableError(
                "this round's contribution was already made: apply() the sum, or abandon() the round if it died"
            )
        if self.more_to_come:
            raise UnaccountableError("the logical batch continues: call step() until more_to_come is false")
        if (self.noise_multiplier, self.max_grad_norm) != (self.mechanism.noise_multiplier, self.unit.clip_norm):
            raise UnaccountableError("noise and clip norm are fixed by the mechanism: remove the scheduler")
        rand = self._rand if rand is None else rand
        self._accumulate(rand=rand)
        self._check_skip_next_step()
        integers = self._sum.astype(np.int64)
        self._drop_batch()
        reserved = self.mechanism.event(survivors=self.mechanism.min_survivors)
        self.accountant.record(reserved)
        self._in_flight = reserved
        return self.mechanism.privatize(integers, rand=rand, seed=self._seed)

    def apply(self, total: Int64Vector, *, survivors: int) -> None:
        """Step the wrapped optimizer on the aggregate, account the round at its survivors, and clear gradients.

        The gradient is the decoded sum over q·records·survivors/clients, a public number: every client that applies the
        same sum makes the same step, bit for bit.

        Args:
            total: int64[d], the sum of the survivors' contributions.
            survivors: How many there were.

        Raises:
            UnaccountableError: No contribution is under way, or there were fewer survivors than a round accepts. The
                round stays charged.
            UnsafeUpdateError: `total` has the wrong dtype or shape.
            ValueError: There were more survivors than clients.
        """
        if self._in_flight is None:
            raise UnaccountableError("no contribution is under way: call contribution() first")
        if total.dtype != np.int64 or total.shape != (self.mechanism.dimension,):
            expected = f"int64[{self.mechanism.dimension}]"
            raise UnsafeUpdateError(f"total must be {expected}, got {total.dtype}{list(total.shape)}")
        event = self.mechanism.event(survivors=survivors)
        denominator = float(self.unit.exact_rate * self.unit.records * survivors / self.mechanism.clients)
        mean = torch.from_numpy(self._encoder.decode(total, denominator=denominator, rotation=self._rotation))
        self.accountant.amend(self._in_flight, event)
        self._in_flight = None
        parts = torch.split(mean, [parameter.numel() for parameter in self.params])
        for parameter, part in zip(self.params, parts, strict=True):
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
        self._drop_batch()
        self.zero_grad(set_to_none=True)

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One round through `aggregate`, or, when the logical batch continues, one more physical batch of it.

        Raises:
            UnaccountableError: A round is due and there is no `aggregate`; or as `contribution` and `apply`.
            UnsafeUpdateError: As `clip_and_accumulate`.
        """
        if closure is not None:
            with torch.enable_grad():
                closure()
        if self.more_to_come:
            self.clip_and_accumulate()
            self._check_skip_next_step()
            return
        if self.aggregate is None:
            raise UnaccountableError(
                "there is no aggregate to step on: send contribution() and give the sum to apply(), or construct with "
                "an `aggregate` that does both"
            )
        share = self.contribution()
        with ExitStack() as on_failure:
            on_failure.callback(self.abandon)
            total, survivors = self.aggregate(share)
            self.apply(total, survivors=survivors)
            on_failure.pop_all()

    def _accumulate(self, *, rand: RandomBytes) -> None:
        """Encode what the last backward pass left."""
        gradients = _record_gradients(self.params)
        if not gradients:
            return
        if self._coins is None:
            self._coins = np.frombuffer(rand(4 * self._sum.size), dtype="<u4") * 2.0**-32
        if self._rotation is None:
            integers, rejected = encode_rows(gradients, coins=self._coins, encoder=self._encoder)
        else:
            integers, rejected = encode_rotated_rows(
                gradients, coins=self._coins, encoder=self._encoder, rotation=self._rotation
            )
        self._sum += integers
        self.rejected_records += rejected
        for parameter in self.params:
            parameter.grad_sample = None

    def _drop_batch(self) -> None:
        """Start the next logical batch, with fresh coins."""
        self._coins = None
        self._sum.fill(0)


def _record_gradients(parameters: Sequence[torch.nn.Parameter]) -> list[Tensor]:
    """float[rows, size] per parameter; nothing at all if there was no backward pass."""
    if all(getattr(parameter, "grad_sample", None) is None for parameter in parameters):
        return []
    gradients = []
    for index, parameter in enumerate(parameters):
        match getattr(parameter, "grad_sample", None):
            case Tensor() as gradient:
                gradients.append(gradient.reshape(len(gradient), parameter.numel()))
            case None:
                raise UnsafeUpdateError(
                    f"parameter {index} of shape {tuple(parameter.shape)} took no part in the loss: freeze it with "
                    "requires_grad_(False)"
                )
            case _:
                raise UnsafeUpdateError("gradients of several backward passes are mixed: step after each")
    if len({len(gradient) for gradient in gradients}) > 1:
        raise UnsafeUpdateError("parameters disagree on the number of records: one row per record is needed")
    return gradients


def encode_rows(gradients: Sequence[Tensor], *, coins: FloatVector, encoder: IntegerEncoder) -> tuple[FloatVector, int]:
    """Clip, round and check every row on its own, by the rules of `IntegerEncoder`, and add the integers.

    Args:
        gradients: float[rows, size] per parameter; one row of all of them is one record's gradient.
        coins: float64[d] in [0, 1), shared by all rows, independent of the data.
        encoder: Clip norm and bound.

    Returns:
        float64[d], integers, and the number of rows whose norm is not finite. Every other row adds integers of norm at
        most `int_bound`; these add nothing.
    """
    rows, length = len(gradients[0]), coins.size
    total = np.zeros(length)
    # Blank rows take part: the shape of a float reduction must not depend on the number of records.
    squared = torch.zeros(rows, dtype=torch.float64)
    for _, tile in _tiles(gradients):
        squared += tile.to(torch.float64, copy=True).square_().sum(1).cpu()
    finite = torch.isfinite(squared)
    kept = torch.nonzero(finite & (squared > 0)).flatten()
    scale = encoder.int_bound / encoder.clip_norm
    factors = scale * (encoder.first_clip(length) / squared[kept].sqrt()).clamp(max=1.0)[:, None]
    # From here on all is elementwise, or sums of integers below 2^53: the same for any shape and order.
    squared_integers = torch.zeros(len(kept), dtype=torch.float64)
    for columns, tile in _tiles(gradients):
        integers = _round_rows(tile, kept, factors, coins[columns])
        total[columns] += integers.sum(0).cpu().numpy()
        squared_integers += integers.square_().sum(1).cpu()
    for row in torch.nonzero(squared_integers > encoder.int_bound**2):
        long = np.empty(length)
        for columns, tile in _tiles(gradients):
            long[columns] = _round_rows(tile, kept[row], factors[row], coins[columns])[0].cpu().numpy()
        total -= long
        total += lower_norm(long, bound=encoder.int_bound)
    return total, rows - int(finite.sum())


def encode_rotated_rows(
    gradients: Sequence[Tensor], *, coins: FloatVector, encoder: IntegerEncoder, rotation: Rotation
) -> tuple[FloatVector, int]:
    """As `encode_rows`, with every row turned by `rotation` between clipping and rounding: row by row."""
    total, rejected = np.zeros(coins.size), 0
    same_coins = (coins * 2.0**32).astype("<u4").tobytes()
    for row in range(len(gradients[0])):
        record = torch.cat([gradient[row].double() for gradient in gradients]).cpu().numpy()
        if np.isfinite(record).all():
            total += encoder.encode(record, rand=BytesIO(same_coins).read, rotation=rotation)
        else:
            rejected += 1
    return total, rejected


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
        for tile in torch.split(gradient, width, dim=1):
            yield slice(offset, offset + tile.shape[1]), tile
            offset += tile.shape[1]

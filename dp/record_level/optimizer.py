"""Per-record gradients in, noised integers out, and a step on their sum over all clients.

Rules:

- The integers of a record depend on its own gradient and on coins that are shared by all records of a logical batch and
  depend on no data. So, for the same coins, removing a record moves the integer sum by exactly its integers.
- With `rounding="sum"` the clipped sum comes from `ghost` and is rounded once; its bound is proved there.
- With a `LocalRecordLevel` unit the same steps are made with all the noise in one share, and nobody is asked for a sum.
- A round is charged before its noise is drawn. Nothing that happens afterwards can make it free.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from .. import local
from ..accounting import PrivacyEvent, RdpCurve, epsilon_of_rdp
from ..encoding import IntegerEncoder, lower_norm
from ..errors import BudgetExceededError, UnaccountableError, UnsafeUpdateError
from ..ledger import PrivacyLedger, Reservation
from ..local import LocalUpdate
from ..mechanisms import DistributedNoise, NoisedIntegers
from ..rotation import Rotation
from ..samplers import FloatVector, Int64Vector, RandomBytes, secure_random
from ..units import LocalRecordLevel, RecordLevel
from .accountant import SkellamAccountant
from .ghost import sum_clip, terms_covered

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

    With a `LocalRecordLevel` unit every `step()` is such a round of this client alone. `start_update()` before the
    local steps and `local_update()` after them give what may be sent.

    Attributes:
        unit: What is protected.
        mechanism: The release of one round.
        accountant: Holds every round at its worst case from the contribution on, and at its survivors once applied.
        rejected_records: Rows so far whose gradient was not finite; they counted as zero. Publishing it is a leak.
        record_clip: The norm that records are clipped to. With `rounding="sum"` it is below the unit's, since rounding
            and float sums take their part of the bound.

    Args:
        optimizer: The optimizer to wrap. Its trainable parameters, in order, are the coordinates of the sum. Per-record
            gradients must be those of a sum of losses, over batches from one `SecretPoissonSampler`.
        unit: Clip norm, rate and public number of records.
        mechanism: As calibrated for `unit` and these parameters; the same at every client.
        accountant: The client's one accountant.
        aggregate: Carries a contribution through a round, blocking. If it raises, the round stays charged and is over.
            None with a `LocalRecordLevel` unit.
        ledger: Where the budget is kept durably, if no other party of this client charges it: every round is reserved
            before its noise is drawn, and refused when the budget is spent. See `dp.planned_budget`.

    Raises:
        ValueError: `mechanism` is not for this unit or not for these parameters, or parameters are of a precision that
            the unit's rounding does not cover.
        CapacityError: Its `int_bound` is below 8·√d.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        unit: RecordLevel | LocalRecordLevel,
        mechanism: DistributedNoise,
        accountant: SkellamAccountant,
        aggregate: Aggregate | None = None,
        ledger: PrivacyLedger | None = None,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=_record_norm(unit),
            expected_batch_size=None,
            loss_reduction="sum",
        )
        dimension = sum(parameter.numel() for parameter in self.params)
        if mechanism.dimension != dimension:
            raise ValueError(f"mechanism is for {mechanism.dimension} coordinates, the optimizer trains {dimension}")
        if mechanism.sampling_rate != unit.exact_rate:
            raise ValueError(f"mechanism has sampling rate {mechanism.sampling_rate}, the unit {unit.exact_rate}")
        if mechanism.rounding != unit.rounding:
            raise ValueError(f"mechanism has rounding {mechanism.rounding!r}, the unit {unit.rounding!r}")
        alone = isinstance(unit, LocalRecordLevel)
        if alone != (mechanism.clients == 1):
            raise ValueError(f"unit {unit.unit!r} does not go with a mechanism for {mechanism.clients} clients")
        if alone and aggregate is not None:
            raise ValueError("a LocalRecordLevel unit has no aggregate: its steps are this client's own")
        if ledger is not None:
            _require_budget(ledger, unit)
        self.unit = unit
        self.mechanism = mechanism
        self.accountant = accountant
        self.aggregate: Aggregate | None = _alone if alone else aggregate
        self.ledger = ledger
        self.rejected_records = 0
        self._encoder = IntegerEncoder(clip_norm=_record_norm(unit), int_bound=mechanism.int_bound)
        self._encoder.require_capacity(dimension)
        self._rand = secure_random()
        self._coins: FloatVector | None = None
        self._sum: FloatVector = np.zeros(dimension)  # integers, or with rounding "sum" gradients
        self._rotation: Rotation | None = None
        self._seed = b""
        self.record_clip = sum_clip(self._encoder, dimension) if unit.rounding == "sum" else _record_norm(unit)
        self._terms_covered = terms_covered(self.params) if unit.rounding == "sum" else 0
        self._terms = 0
        self._handed_over = False
        self._in_flight: PrivacyEvent | None = None
        self._reservation: Reservation | None = None
        self._start: list[Tensor] | None = None
        self._versions: list[int] = []

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
            UnsafeUpdateError: As `clip_and_accumulate`, or as `local_update`.
            BudgetExceededError: The round, at its worst case, does not fit the ledger, or without one the unit's
                budget; nothing was drawn.
        """
        if self._in_flight is not None:
            raise UnaccountableError(
                "this round's contribution was already made: apply() the sum, or abandon() the round if it died"
            )
        if self.more_to_come:
            raise UnaccountableError("the logical batch continues: call step() until more_to_come is false")
        if (self.noise_multiplier, self.max_grad_norm) != (self.mechanism.noise_multiplier, _record_norm(self.unit)):
            raise UnaccountableError("noise and clip norm are fixed by the mechanism: remove the scheduler")
        reserved = self.mechanism.event(survivors=self.mechanism.min_survivors)
        self._require_untouched()
        self._require_budget(reserved)
        rand = self._rand if rand is None else rand
        self._accumulate(rand=rand)
        self._check_skip_next_step()
        if self.unit.rounding == "sum":
            self._sum *= self._encoder.int_bound / self._encoder.clip_norm
            if self._rotation is not None:
                self._sum = self._rotation.apply(self._sum)
            self._sum += _draw_coins(self._sum.size, rand=rand)
            np.floor(self._sum, out=self._sum)
        integers = self._sum.astype(np.int64)
        self._drop_batch()
        if self.ledger is not None:
            self._reservation = self.ledger.reserve(reserved, request_id=f"step/{os.urandom(16).hex()}")
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
        if self._reservation is not None and self.ledger is not None:
            self.ledger.commit(self._reservation, event)
        self._in_flight = self._reservation = None
        parts = torch.split(mean, [parameter.numel() for parameter in self.params])
        for parameter, part in zip(self.params, parts, strict=True):
            parameter.grad = part.view(parameter.shape).to(parameter)
        if self.step_hook:
            self.step_hook(self)
        self.original_optimizer.step()
        self._versions = [parameter._version for parameter in self.params]
        self.zero_grad(set_to_none=True)

    def start_update(self) -> None:
        """Remember the parameters that the local steps of a round start from.

        Raises:
            UnaccountableError: The unit is not a `LocalRecordLevel`.
        """
        if not isinstance(self.unit, LocalRecordLevel):
            raise UnaccountableError(
                f"unit {self.unit.unit!r} sends contributions: local updates need LocalRecordLevel"
            )
        self._start = [parameter.detach().clone() for parameter in self.params]
        self._versions = [parameter._version for parameter in self.params]

    def local_update(self, module: nn.Module) -> LocalUpdate:
        """What the steps since `start_update` changed, ready to be sent.

        Args:
            module: Whose trainable parameters these are; it gives the names.

        Raises:
            UnaccountableError: There was no `start_update`.
            UnsafeUpdateError: Parameters changed otherwise than by private steps, or are not the module's.
        """
        if self._start is None or not isinstance(self.unit, LocalRecordLevel):
            raise UnaccountableError("call start_update() before the local steps of a round")
        self._require_untouched()
        starts = dict(zip(self.params, self._start, strict=True))
        names = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        if set(names.values()) != set(starts):
            raise UnsafeUpdateError("the optimizer steps other parameters than the module's trainable ones")
        arrays = {name: (parameter.detach() - starts[parameter]).cpu().numpy() for name, parameter in names.items()}
        self._start = None
        return LocalUpdate(arrays=arrays, unit=self.unit, seal=local._SEAL)

    def _require_untouched(self) -> None:
        """Between `start_update` and `local_update` only private steps may write parameters."""
        if self._start is not None and self._versions != [parameter._version for parameter in self.params]:
            raise UnsafeUpdateError(
                "parameters were changed outside private steps since start_update(): load a model before it"
            )

    def _require_budget(self, reserved: PrivacyEvent) -> None:
        """Refuse the round that would pass the unit's budget. With a ledger, that decides."""
        if self.ledger is not None:
            return
        counts = Counter(dict(self.accountant.history))
        counts[reserved] += 1
        curve = np.sum([count * _curve(event) for event, count in counts.items()], axis=0)
        if (spent := epsilon_of_rdp(curve, self.unit.delta)) > self.unit.epsilon:
            raise BudgetExceededError(
                f"one more round would spend epsilon {spent:.4g} at delta {self.unit.delta:g}, the budget is "
                f"{self.unit.epsilon:g}"
            )

    def abandon(self) -> None:
        """Give up the round under way, if any: nothing is applied, and it stays charged at its worst case."""
        if self._reservation is not None and self.ledger is not None:
            self.ledger.charge(self._reservation)
        self._in_flight = self._reservation = None
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

    def take_sum(self, *, terms: int, rejected: int) -> None:
        """Add the clipped sum that ghost clipping left in the parameters, once per physical batch.

        Args:
            terms: K·rows of this batch, see `ghost`.
            rejected: Records that counted as absent.

        Raises:
            UnsafeUpdateError: The last batch was not followed by a step, the sum is not finite, or float sums over so
                many terms may pass the margin.
        """
        if self.unit.rounding != "sum":
            raise UnsafeUpdateError(f"the unit's rounding is {self.unit.rounding!r}: gradients come per record")
        if self._handed_over:
            raise UnsafeUpdateError("gradients of several backward passes are mixed: step after each")
        if self._terms + terms > self._terms_covered:
            raise UnsafeUpdateError(
                f"float sums over rows x rows x places = {self._terms + terms} terms may pass the margin of rounding "
                f'"sum", which covers {self._terms_covered}: lower physical_batch_size, call module.double(), or take '
                'rounding="exact"'
            )
        sums = [parameter.grad for parameter in self.params]
        if not all(isinstance(part, Tensor) and bool(torch.isfinite(part).all()) for part in sums):
            raise UnsafeUpdateError("the clipped sum is missing or not finite")
        self._terms += terms
        self._handed_over = True
        self.rejected_records += rejected
        offset = 0
        for parameter in self.params:
            self._sum[offset : offset + parameter.numel()] += parameter.grad.double().flatten().cpu().numpy()
            offset += parameter.numel()
            parameter.grad = None

    def _accumulate(self, *, rand: RandomBytes) -> None:
        """Encode what the last backward pass left."""
        if self.unit.rounding == "sum":
            if any(parameter.grad is not None for parameter in self.params):
                raise UnsafeUpdateError(
                    "gradients were not clipped: call backward() on the loss of the criterion that make_private "
                    "returned"
                )
            self._handed_over = False
            return
        gradients = _record_gradients(self.params)
        if not gradients:
            return
        if self._coins is None:
            self._coins = _draw_coins(self._sum.size, rand=rand)
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
        self._terms = 0
        self._handed_over = False


def _draw_coins(length: int, *, rand: RandomBytes) -> FloatVector:
    """float64[length] in [0, 1), multiples of 2^-32."""
    return np.frombuffer(rand(4 * length), dtype="<u4") * 2.0**-32


@lru_cache(maxsize=256)
def _curve(event: PrivacyEvent) -> RdpCurve:
    """Its Rényi curve: milliseconds to compute, and asked for in every round."""
    return event.rdp()


def _record_norm(unit: RecordLevel | LocalRecordLevel) -> float:
    """What a record's gradient is clipped to."""
    return unit.record_clip_norm if isinstance(unit, LocalRecordLevel) else unit.clip_norm


def _alone(share: NoisedIntegers) -> tuple[Int64Vector, int]:
    """The sum over one client."""
    return share.take(), 1


def _require_budget(ledger: PrivacyLedger, unit: RecordLevel | LocalRecordLevel) -> None:
    """A ledger keeps the unit's budget and no other."""
    state = ledger.state()
    if (state.limit_epsilon, state.delta, state.unit) != (unit.epsilon, unit.delta, unit.unit):
        raise ValueError(
            f"the ledger keeps epsilon {state.limit_epsilon} at delta {state.delta} for unit {state.unit!r}, "
            f"the unit is {unit.unit!r} with epsilon {unit.epsilon} at delta {unit.delta}"
        )


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

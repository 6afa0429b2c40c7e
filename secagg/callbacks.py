"""What a training run tells while it runs, and to whom.

1. Three moments: a round has finished, a round was aborted, the budget refused a round. After the last two the error
   goes on to the caller of `train`.
2. A callback is an object with any of the methods of `Callback`, or a plain function, which hears of finished rounds.
3. With a checkpoint a round is on disk before anybody hears of it. What a callback raises ends the run, not the round.
4. Records hold counts and sums over clients: never a client id, never one client's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dp import BudgetExceededError, PrivacyError
from protocols import Phase, ProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One finished round.

    Attributes:
        round: its number, from 1.
        survivors: clients in the sum.
        dropouts: clients that were invited and are not in it.
        missing: for each phase how many of the clients that the server waited for stayed silent.
        seconds: for each phase its time on the clock.
        bytes_up: of all messages that reached the server.
        epsilon: spent so far against the server and the assumed colluders; infinity without privacy.
        clip_norm: of this round.
        delta: of the guarantee; None without privacy.
        budget_fraction: how much of the server's budget is spent, from 0 to 1; None if it keeps none.
        score: what `evaluate` said of the model after this round; None without `evaluate`.
        riders: the mean of each metric that rode along, noised if the configuration says so.
    """

    round: int
    survivors: int
    dropouts: int
    missing: Mapping[Phase, int]
    seconds: Mapping[Phase, float]
    bytes_up: int
    epsilon: float
    clip_norm: float
    delta: float | None
    budget_fraction: float | None
    score: float | None
    riders: Mapping[str, float]

    def metrics(self) -> dict[str, float]:
        """A flat dictionary for experiment trackers; what does not apply is left out."""
        optional = {
            "privacy/delta": self.delta,
            "privacy/budget_fraction": self.budget_fraction,
            "model/score": self.score,
        }
        return {
            "round/survivors": self.survivors,
            "round/dropouts": self.dropouts,
            "round/bytes_up": self.bytes_up,
            "round/seconds": sum(self.seconds.values()),
            "privacy/epsilon": self.epsilon,
            "privacy/clip_norm": self.clip_norm,
            **{name: value for name, value in optional.items() if value is not None},
            **_missing(self.missing),
            **{f"clients/{name}": value for name, value in self.riders.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortRecord:
    """A round that ended without a result.

    Attributes:
        round: its number, from 1; the next one to finish has the same.
        phase: the last phase that the server closed or tried to; None if it closed none.
        missing: for each such phase how many clients stayed silent.
        seconds: for each such phase its time on the clock.
        bytes_up: of all messages that reached the server.
        epsilon: spent so far, this round included if it counts; infinity without privacy.
    """

    round: int
    phase: Phase | None
    missing: Mapping[Phase, int]
    seconds: Mapping[Phase, float]
    bytes_up: int
    epsilon: float

    def metrics(self) -> dict[str, float]:
        """A flat dictionary for experiment trackers."""
        return {
            "round/aborted": 1,
            "round/bytes_up": self.bytes_up,
            "round/seconds": sum(self.seconds.values()),
            "privacy/epsilon": self.epsilon,
            **_missing(self.missing),
        }


class Callback:
    """Base for callbacks; each method does nothing until a subclass says what."""

    def on_round_end(self, record: RoundRecord) -> None:
        """A round has finished."""

    def on_abort(self, error: ProtocolError | PrivacyError, record: AbortRecord) -> None:
        """A round was aborted; `error` goes on to the caller of `train`."""

    def on_budget_refused(self, error: BudgetExceededError) -> None:
        """The budget allows no further round; `error` goes on to the caller of `train`."""


AnyCallback = Callback | Callable[[RoundRecord], None]


class Callbacks(Callback):
    """Several callbacks as one, told in order.

    Raises:
        TypeError: one of them is neither callable nor has a method of `Callback`.
    """

    def __init__(self, callbacks: Iterable[AnyCallback]) -> None:
        self._callbacks = tuple(callbacks)
        for callback in self._callbacks:
            if not callable(callback) and not any(hasattr(callback, name) for name in _METHODS):
                raise TypeError(f"{callback!r} is no callback: it has none of {', '.join(_METHODS)}")

    def on_round_end(self, record: RoundRecord) -> None:
        """Tells those that listen to it, and the plain functions."""
        for callback in self._callbacks:
            if any(hasattr(callback, name) for name in _METHODS):
                getattr(callback, "on_round_end", _nothing)(record)
            elif callable(callback):
                callback(record)

    def on_abort(self, error: ProtocolError | PrivacyError, record: AbortRecord) -> None:
        """Tells those that listen to it."""
        for callback in self._callbacks:
            getattr(callback, "on_abort", _nothing)(error, record)

    def on_budget_refused(self, error: BudgetExceededError) -> None:
        """Tells those that listen to it."""
        for callback in self._callbacks:
            getattr(callback, "on_budget_refused", _nothing)(error)


_METHODS = ("on_round_end", "on_abort", "on_budget_refused")


def _nothing(*_: object) -> None:
    """What a callback without a method does."""


def _missing(missing: Mapping[Phase, int]) -> dict[str, float]:
    return {f"round/missing/{phase.value}": count for phase, count in missing.items()}

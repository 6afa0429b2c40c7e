"""Many cohorts instead of one: each is aggregated on its own, and their means are combined so that a few may lie.

Masking hides a lie: a client can send any vector, and the sum over everybody is then whatever it likes. In cohorts the
lie stays in one mean out of g.

1. A public random draw from the round id puts each client into exactly one cohort. Whoever knows the id can repeat it.
   The id must not be chosen by who gains from the draw: take a beacon, or count the tries (`tolerated_colluders`).
2. The server sees every cohort's mean. A client is in one of them, so cohorts compose in parallel: a round costs what
   one cohort costs, at the fewest survivors of any. It does not cost less because there are many.
3. The price is noise. Each cohort's sum carries its own full noise, so the plain mean over g cohorts has sqrt(g) times
   the standard deviation of one aggregation over everybody at the same epsilon; `median` and `trimmed_mean` have at
   most sqrt(g pi / 2) times it.
4. What it buys: as long as at most f cohorts contain a client that lies or aborts, each coordinate of `median` (of at
   least 2 f + 1 means) and of `trimmed_mean` (trim f) lies between the least and the largest mean of the other cohorts.
   `clipped_mean` lies within its radius of their median.
5. A cohort that aborts is left out; fewer than cohorts - f means are no result.

`max_colluders` of the configuration is for each cohort: the noise of honest clients elsewhere does not help.

Sources: Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018 (median, trimmed mean); Karimireddy et al.,
"Learning from History for Byzantine Robust Optimization", ICML 2021 (clipping around a centre).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import shake_256
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dp import PrivacyLedger
from dp.samplers import FloatVector
from protocols import ClientId, ProtocolError, TooFewClientsError

from .checkpoint import enrol
from .client import request_id
from .config import AggregationConfig
from .history import HistoryStore, MemoryHistory
from .layout import Arrays, Layout
from .server import AggregationResult
from .simulation import DropPlan, Simulation, Tap, UpdateSource, drop_phases
from .statement import statement
from .tails import LOG2, log_any, log_hypergeometric_tail

ID_BYTES = 32
SECURITY = 80  # bits: leaves 40 after the server tried 2^40 ids to get a draw that it likes
MEDIAN_EFFICIENCY = math.sqrt(math.pi / 2)  # a median's deviation under normal noise, over a mean's, for many means

Matrix = NDArray[np.float64]
Rule = Callable[[Matrix], FloatVector]


def assign(clients: Iterable[int], cohorts: int, *, round_id: bytes) -> tuple[tuple[ClientId, ...], ...]:
    """Who is in which cohort: a uniform draw that follows from the round id.

    Args:
        clients: ids; their order does not matter.
        cohorts: g, a divisor of their number.
        round_id: 32 bytes, public.

    Returns:
        g cohorts of one size, each in increasing order.

    Raises:
        ValueError: the clients cannot be dealt evenly, or the id has another length.
    """
    ids = sorted(ClientId(client) for client in clients)
    if len(round_id) != ID_BYTES:
        raise ValueError(f"round_id must have {ID_BYTES} bytes, got {len(round_id)}")
    if not 1 <= cohorts <= len(ids) or len(ids) % cohorts:
        raise ValueError(f"{len(ids)} clients do not make {cohorts} cohorts of one size")
    # A random 128-bit key for each client sorts them into a uniform order; equal keys have probability 2^-100.
    stream = shake_256(b"secagg/v1/cohorts" + round_id).digest(16 * len(ids))
    keys = np.frombuffer(stream, dtype=">u8").reshape(-1, 2)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    size = len(ids) // cohorts
    return tuple(tuple(sorted(ids[i] for i in order[start : start + size])) for start in range(0, len(ids), size))


def tolerated_colluders(clients: int, cohorts: int, *, max_colluders: int) -> int:
    """How many of all clients may work with the server, so that no cohort has more than `max_colluders` of them.

    Either they are no more than that altogether, or the draw spreads them: a union bound over cohorts and
    hypergeometric tails, 2^-80 in all, which leaves 2^-40 to a server that tries 2^40 round ids.
    """
    size = clients // cohorts

    def safe(colluders: int) -> bool:
        tail = log_hypergeometric_tail(max_colluders + 1, population=clients, marked=colluders, draws=size)
        return colluders <= max_colluders or log_any(cohorts, tail) <= -SECURITY * LOG2

    low, high = max_colluders, clients + 1  # low is safe; high is out of range, or is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if safe(middle) else (low, middle)
    return min(low, clients)


def mean(values: Matrix) -> FloatVector:
    """float64[g, d] to float64[d]: the plain mean, which any single cohort can move anywhere."""
    result: FloatVector = values.mean(axis=0)
    return result


def median(values: Matrix) -> FloatVector:
    """float64[g, d] to float64[d]: the median of each coordinate."""
    result: FloatVector = np.median(values, axis=0)
    return result


def trimmed_mean(values: Matrix, *, trim: int) -> FloatVector:
    """float64[g, d] to float64[d]: the mean of each coordinate without its `trim` largest and `trim` least values.

    Raises:
        ValueError: nothing would be left, or `trim` is negative.
    """
    if not 0 <= 2 * trim < len(values):
        raise ValueError(f"trim must be from 0 to {(len(values) - 1) // 2} for {len(values)} cohorts, got {trim}")
    result: FloatVector = np.sort(values, axis=0)[trim : len(values) - trim].mean(axis=0)
    return result


def clipped_mean(values: Matrix, *, radius: float) -> FloatVector:
    """float64[g, d] to float64[d]: the median, plus the mean of the differences to it, each clipped to L2 `radius`.

    Raises:
        ValueError: `radius` is not finite and positive.
    """
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be finite and > 0, got {radius!r}")
    centre = median(values)
    differences = values - centre
    norms = np.linalg.norm(differences, axis=1, keepdims=True)
    result: FloatVector = centre + (differences * np.minimum(1.0, radius / np.maximum(norms, radius))).mean(axis=0)
    return result


def combine(means: Sequence[Arrays], rule: Rule = median) -> dict[str, NDArray[np.floating]]:
    """One model from the means of several cohorts.

    Args:
        means: named arrays of each cohort, with the same names, shapes and dtypes.
        rule: `mean`, `median`, or `functools.partial` of `trimmed_mean` or `clipped_mean` with their number.

    Raises:
        ValueError: there is no mean, or the rule cannot combine so few.
        UnsafeUpdateError: names, shapes or dtypes differ.
    """
    if not means:
        raise ValueError("there is no cohort to combine")
    layout = Layout.of(means[0])
    return layout.unflatten(rule(np.stack([layout.flatten(one) for one in means])))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CohortResult:
    """What one round over all cohorts reveals.

    Attributes:
        mean: the combination of the cohorts' means.
        metrics: of each agreed metric the same combination.
        cohorts: the results that were combined; the server has seen each of them.
        aborted: why each other cohort has none.
        survivors: all clients whose updates are in some cohort's mean.
        epsilon: spent so far against the server and `max_colluders` clients of the costliest cohort.
        colluders: how many of all clients may work with the server within that claim.
        config: what was agreed in each cohort.
    """

    mean: dict[str, NDArray[np.floating]]
    metrics: dict[str, float]
    cohorts: tuple[AggregationResult, ...]
    aborted: tuple[ProtocolError, ...]
    survivors: frozenset[ClientId]
    epsilon: float
    colluders: int
    config: AggregationConfig

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise on a coordinate of the cohorts' plain mean, in units of the update.

        `median` and `trimmed_mean` have at most sqrt(pi / 2) times as much.
        """
        deviations = [
            self.config.noise_stddev(len(one.survivors)) / self.config.denominator(len(one.survivors))
            for one in self.cohorts
        ]
        return math.hypot(*deviations) / len(deviations)

    def statement(self) -> str:
        """What is hidden from whom: the statement of one cohort, and what many of them change."""
        count, size = len(self.cohorts) + len(self.aborted), self.config.clients
        price = math.sqrt(count)
        noise = (
            f"  - each sum carries its own full noise: the plain mean has {price:.2f} times the noise of one "
            f"aggregation over all {count * size} clients, a median or trimmed mean at most "
            f"{price * MEDIAN_EFFICIENCY:.2f} times"
        )
        lines = [
            f"{count} cohorts of {size} clients, drawn from a public random id; {len(self.cohorts)} are combined",
            "  - the server sees the sum of every cohort, not only their combination",
            "  - a client is in exactly one cohort of a round, so a round costs the epsilon of one cohort: "
            "more cohorts do not lower it",
            *([] if self.config.budget() is None else [noise]),
            f"  - at most {self.config.max_colluders} clients of each cohort work with the server: holds if at most "
            f"{self.colluders} of all do, except with probability 2^-{SECURITY} for each draw",
            "What follows holds for each cohort.",
        ]
        fewest = min(len(one.survivors) for one in self.cohorts)
        return "\n".join([*lines, statement(self.config, survivors=fewest, spent=self.epsilon)])


class Cohort(Simulation):
    """One cohort of one round; its parties' histories and ledgers belong to the whole."""

    def __init__(
        self,
        config: AggregationConfig,
        *,
        clients: Iterable[int],
        histories: Mapping[int, HistoryStore],
        ledgers: Mapping[str, PrivacyLedger],
    ) -> None:
        self._histories, self._kept = histories, ledgers
        super().__init__(config, clients=clients)

    def _history(self, client: ClientId) -> HistoryStore:
        return self._histories[client]

    def _ledger(self, name: str) -> PrivacyLedger | None:
        """A client's own. The server's is one in memory, which shows what this cohort cost."""
        return self._kept.get(name)


class CohortSimulation:
    """All parties of many cohorts, over many rounds; each round draws the cohorts anew.

    Args:
        config: what is agreed in each cohort; its `clients` is the size of one.
        clients: the ids of all clients.
        bad_cohorts: f, how many cohorts may abort or lie.
        ledger_directory: where every party keeps its ledger; in memory if None. Existing ledgers are continued.

    Attributes:
        exact_sums: cohorts whose released sum was compared with the plain integer sum and found equal.

    Raises:
        ValueError: the clients do not fill cohorts of that size, f is too large for their number, clients have weights
            (the means of all cohorts weigh the same), or the clip norm is adaptive.
        LedgerError: some ledgers are missing.
    """

    cohort_type: ClassVar[type[Cohort]] = Cohort

    def __init__(
        self,
        config: AggregationConfig,
        *,
        clients: Iterable[int],
        bad_cohorts: int,
        ledger_directory: str | Path | None = None,
    ) -> None:
        self._ids = sorted(ClientId(client) for client in clients)
        self._count = len(self._ids) // config.clients
        if self._count * config.clients != len(self._ids) or not self._ids:
            raise ValueError(f"{len(self._ids)} clients do not fill cohorts of {config.clients}")
        if not 0 <= 2 * bad_cohorts < self._count:
            raise ValueError(
                f"bad_cohorts must be from 0 to {(self._count - 1) // 2} for {self._count} cohorts, got {bad_cohorts}"
            )
        if config.riders.weights is not None:
            raise ValueError("the means of all cohorts weigh the same: leave out the weights")
        if config.adaptive is not None:
            raise ValueError("all cohorts have one clip norm: an adaptive one would follow each cohort on its own")
        self.config = config
        self.exact_sums = 0
        self._bad = bad_cohorts
        groups: dict[frozenset[ClientId], frozenset[ClientId]] = {}
        self._histories: dict[int, HistoryStore] = {client: MemoryHistory(groups=groups) for client in self._ids}
        self._ledgers = _ledgers(config, self._ids, None if ledger_directory is None else Path(ledger_directory))

    def round(
        self,
        updates: UpdateSource,
        *,
        rule: Rule = median,
        drop: DropPlan = (),
        model: Arrays | None = None,
        tap: Tap | None = None,
    ) -> CohortResult:
        """One round over all cohorts.

        Args:
            updates: for each client its update, or a function that computes it when the client is asked.
            rule: how the cohorts' means are combined; see `combine`.
            drop: as for `simulate`.
            model: the arrays that all updates start from.
            tap: sees every message that reaches the server.

        Raises:
            BudgetExceededError: the server's or a client's budget does not allow another round.
            TooFewClientsError: more than `bad_cohorts` cohorts have aborted.
            ValueError: the drop plan names unknown clients, or the rule cannot combine so few cohorts.
        """
        silent = drop_phases(drop)
        unknown = sorted(set(silent) - set(self._ids))
        if unknown:
            raise ValueError(f"clients {unknown} of the drop plan do not take part")
        round_id = os.urandom(ID_BYTES)
        server, mechanism = self._ledgers.get("server"), self.config.mechanism
        reservation = None
        if server is not None and mechanism is not None:
            worst = mechanism.event(survivors=self.config.min_survivors)
            reservation = server.reserve(worst, request_id=request_id(round_id))
        done: list[AggregationResult] = []
        aborted: list[ProtocolError] = []
        unfinished: list[Cohort] = []
        try:
            for members in assign(self._ids, self._count, round_id=round_id):
                cohort = self._cohort(members)
                unfinished.append(cohort)
                own = {client: phase for client, phase in silent.items() if client in members}
                try:
                    done.append(cohort.round(updates, drop=own, model=model, tap=tap))
                except ProtocolError as error:
                    aborted.append(error)
                else:
                    unfinished.remove(cohort)
                    self.exact_sums += cohort.exact_sums
        finally:
            if reservation is not None and server is not None and mechanism is not None:
                if any(_spent(cohort) for cohort in unfinished):
                    server.charge(reservation)
                elif done:
                    server.commit(reservation, mechanism.event(survivors=min(len(one.survivors) for one in done)))
                else:
                    server.release(reservation)
        if len(aborted) > self._bad:
            raise TooFewClientsError(
                f"{len(aborted)} of {self._count} cohorts have aborted, {self._bad} may; the first: {aborted[0]}"
            )
        names = list(done[0].metrics)
        metrics: Iterable[float] = (
            rule(np.array([[one.metrics[name] for name in names] for one in done])) if names else ()
        )
        return CohortResult(
            mean=combine([one.mean for one in done], rule),
            metrics={name: float(value) for name, value in zip(names, metrics, strict=True)},
            cohorts=tuple(done),
            aborted=tuple(aborted),
            survivors=frozenset[ClientId]().union(*(one.survivors for one in done)),
            epsilon=max(one.epsilon for one in done) if server is None else server.state().epsilon,
            colluders=tolerated_colluders(len(self._ids), self._count, max_colluders=self.config.max_colluders),
            config=self.config,
        )

    def close(self) -> None:
        """Closes all ledgers."""
        for ledger in self._ledgers.values():
            ledger.close()

    def _cohort(self, members: Collection[int]) -> Cohort:
        clients = {name: ledger for name, ledger in self._ledgers.items() if name != "server"}
        return self.cohort_type(self.config, clients=members, histories=self._histories, ledgers=clients)


def _ledgers(config: AggregationConfig, clients: Iterable[int], folder: Path | None) -> dict[str, PrivacyLedger]:
    """One ledger for each party, by the name of its file; none without privacy."""
    budget = config.budget()
    if budget is None:
        return {}
    names = ["server", *(f"client-{client}" for client in clients)]
    if folder is None:
        return {name: PrivacyLedger.create(":memory:", budget=budget) for name in names}
    enrol(folder, names, budget=budget)
    return {name: PrivacyLedger.open(folder / f"{name}.ledger") for name in names}


def _spent(cohort: Cohort) -> int:
    """What the server of an aborted cohort was charged: nothing if it asked nobody to unmask."""
    ledger = cohort.server.ledger
    return 0 if ledger is None else ledger.state().filter_spent

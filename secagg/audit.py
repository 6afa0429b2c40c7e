"""Does the code keep what it claims? A canary goes through the real path, and what the server sees is put to the test.

`audit_privacy` runs five checks on a configuration, each of which can fail on its own:

1. *epsilon*: in thousands of trials one client (or record) is there or not, by a coin. All clients encode and noise a
   vector of one coordinate, where the canary puts its whole norm; trials are masked together as one long vector and
   summed by a real round with the fewest survivors that are accepted. From the sums, less what the colluders sent
   themselves, an attacker guesses the coin. A lower bound above the claimed epsilon of one round disproves the claim.
   A canary record is always drawn, and the claim is that without amplification: it is the one that noise must keep.
2. *variance*: the noise in the sum of the fewest honest shares is no less than the claimed one.
3. *sum*: every released sum equals the sum of what the clients sent, before the ring.
4. *streams*: no two contributions share their noise.
5. *sensitivity*: the same bytes of randomness with one client or record removed; the integers may differ by int_bound.

Rules:

- A bound is a lower bound: passing is no proof. That is what the accounting is for.
- `path` is what a client runs; defects of `audit_defects` replace it and must fail, or the audit is worth nothing.
- One round is tested. That rounds compose is proved and accounted, not sampled.
- Updates are tested alone: weights, metrics and votes on the clip norm ride in the same vector and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp import CapacityError, DistributedNoise, RecordLevel, epsilon, from_ring, poisson_draw, secure_random
from dp.auditing import AuditBounds, audit
from dp.samplers import Int64Vector, RandomBytes, UInt32Vector
from protocols import ClientId

from .config import AggregationConfig
from .layout import Layout
from .pipeline import Update, prepare
from .riders import NO_RIDERS
from .simulation import ObservedClient, Simulation

Path = Callable[[Update, AggregationConfig, RandomBytes], UInt32Vector]

CANARY = ClientId(1)
CALLS = 150_000  # contributions that an audit prepares at most, unless told otherwise
SIGMAS = 4.0  # standard errors that the sample variance may fall short
DRAWS = 200_000  # of noise, for the variance
STREAMS = 24
RECORDS = 16  # that are removed, one at a time
REPLAYED = 50  # coordinates of a replayed vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was tested.

    Attributes:
        name: which.
        measured: what was found.
        limit: what the claim allows.
        passed: whether the claim stands.
        reason: what the two numbers are.
    """

    name: str
    measured: float
    limit: float
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit of one configuration found.

    Attributes:
        claimed: epsilon that one round claims against the server and the assumed colluders.
        bounds: lower bounds on it from the trials.
        checks: all checks, in order.
        trials: how many trials there were.
    """

    claimed: float
    bounds: AuditBounds
    checks: tuple[Check, ...]
    trials: int

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "claimed": self.claimed,
            "delta": self.bounds.delta,
            "confidence": self.bounds.confidence,
            "trials": self.trials,
            "auroc": self.bounds.auroc,
            "bounds": dict(self.bounds.bounds),
            "passed": self.passed,
            "checks": {
                check.name: {
                    "measured": check.measured,
                    "limit": check.limit,
                    "passed": check.passed,
                    "reason": check.reason,
                }
                for check in self.checks
            },
        }


def honest_path(update: Update, config: AggregationConfig, rand: RandomBytes) -> UInt32Vector:
    """What the library's clients run."""
    return prepare(update, config, rand=rand, seed=b"audit")  # one rotation for all, where there is one


def audit_privacy(
    config: AggregationConfig,
    *,
    trials: int | None = None,
    confidence: float = 0.95,
    path: Path = honest_path,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> AuditReport:
    """Runs all checks on one configuration.

    Args:
        config: what is audited; with privacy.
        trials: canary trials, at least 100. Without it, as many as some 20 seconds allow.
        confidence: probability with which all bounds on epsilon hold.
        path: what a client runs.
        progress: called with the trials done and to do.

    Raises:
        ValueError: the configuration has no privacy to audit, or there are too few trials.
    """
    scalar = with_length(config, 1)
    mechanism, delta = noise_of(scalar), float(getattr(config.privacy, "delta", 0.0))
    honest = config.min_survivors - config.max_colluders
    trials = max(500, CALLS // honest) if trials is None else trials
    if trials < 100:
        raise ValueError(f"trials must be at least 100, got {trials}")
    claimed = epsilon([replace(mechanism.event_with(honest=honest), sampling_rate=Fraction(1))], delta=delta)
    coins = np.unpackbits(np.frombuffer(secure_random()(trials // 8 + 1), dtype=np.uint8))[:trials].astype(bool)
    vectors = {client: np.zeros(trials, dtype=np.uint32) for client in range(1, config.min_survivors + 1)}
    for trial in range(trials):
        for client in range(1, honest + 1):  # whatever the colluders send, they know it: they send zeros
            update = canary(scalar) if client == CANARY and coins[trial] else nothing(scalar)
            vectors[client][trial] = path(update, scalar, _always_drawn(secure_random()))[0]
        progress(trial + 1, trials)
    scores, sum_check = _released(scalar, vectors)
    stddev = math.sqrt(honest * mechanism.share_variance)
    middle = mechanism.int_bound / 2
    bounds = audit(
        scores[coins].astype(np.float64),
        scores[~coins].astype(np.float64),
        delta=delta,
        thresholds=[middle + step * stddev for step in (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)],
        independent=True,
        confidence=confidence,
    )
    epsilon_check = Check(
        name="epsilon",
        measured=bounds.epsilon,
        limit=claimed,
        passed=bounds.epsilon <= claimed,
        reason=f"lower bound at {confidence:.0%} confidence, against the claimed epsilon of one round",
    )
    checks = (epsilon_check, _variance(config, path), sum_check, _streams(config, path), _sensitivity(config, path))
    return AuditReport(claimed=claimed, bounds=bounds, checks=checks, trials=trials)


def noise_of(config: AggregationConfig) -> DistributedNoise:
    """The mechanism under audit.

    Raises:
        ValueError: the configuration has none, its noise is removable, or its clients round sums.
    """
    if config.mechanism is None:
        raise ValueError("there is no epsilon to audit: the configuration has no privacy")
    if config.removable:
        raise ValueError(
            "the audit plays the worst accepted round, of which nothing is removed: audit the same configuration with "
            'dropout_noise="worst_case"'
        )
    if isinstance(config.privacy, RecordLevel) and config.privacy.rounding != "exact":
        raise ValueError(
            "the audit rounds every record on its own, which is not what these clients run: audit the same "
            'configuration with rounding="exact"'
        )
    return config.mechanism


def with_length(config: AggregationConfig, length: int) -> AggregationConfig:
    """The same configuration for a vector of another length, without riders, at this round's clip norm.

    A small ring that holds a long vector by a rotation may not hold a short one: that gets 32 bits.
    """
    privacy = replace(config.privacy, clip_norm=config.clip_norm)
    other = partial(replace, config, layout=Layout.of({"w": np.zeros(length)}), riders=NO_RIDERS, privacy=privacy)
    try:
        return other()
    except CapacityError:
        return other(modulus_bits=32)


def canary(config: AggregationConfig) -> dict[str, NDArray[np.float64]]:
    """The contribution that moves the first coordinate most."""
    vector = np.zeros(config.layout.length)
    vector[0] = config.clip_norm
    return {"w": vector[None] if isinstance(config.privacy, RecordLevel) else vector}


def nothing(config: AggregationConfig) -> dict[str, NDArray[np.float64]]:
    """The contribution of a client that is not there: zero, or no records."""
    length = config.layout.length
    return {"w": np.zeros((0, length)) if isinstance(config.privacy, RecordLevel) else np.zeros(length)}


class _WordsClient(ObservedClient):
    """A client whose vector was prepared beforehand."""

    def prepare(self, update: Update) -> UInt32Vector:
        self.prepared = np.asarray(update["words"], dtype=np.uint32)  # type: ignore[index]
        return self.prepared


class _WordsSimulation(Simulation):
    client_type = _WordsClient


def _released(config: AggregationConfig, vectors: dict[int, UInt32Vector]) -> tuple[Int64Vector, Check]:
    """What real rounds release of these vectors, and whether it is their sum."""
    trials = len(vectors[CANARY])
    piece = with_length(config, min(trials, 5000))
    clients = range(1, config.clients + 1)
    released = []
    for start in range(0, trials, piece.length):
        words = {client: np.zeros(piece.length, dtype=np.uint32) for client in clients}
        for client, vector in vectors.items():
            part = vector[start : start + piece.length]
            words[client][: len(part)] = part
        simulation = _WordsSimulation(piece, clients=clients)
        dropped = [client for client in clients if client > config.min_survivors]
        result = simulation.round({client: {"words": words[client]} for client in clients}, drop=dropped)
        released.append(result.total)
    total = np.concatenate(released)[:trials]
    integers = sum(from_ring(vector, modulus_bits=piece.modulus_bits) for vector in vectors.values())
    wrong = int(np.count_nonzero(total != integers))
    return total, Check(
        name="sum",
        measured=float(wrong),
        limit=0.0,
        passed=wrong == 0,
        reason=f"released coordinates, of {trials}, that differ from the clients' integers added up",
    )


def _variance(config: AggregationConfig, path: Path) -> Check:
    """The sample variance of sums of the fewest honest shares, over the claimed variance."""
    long = with_length(config, max(1000, min(config.layout.length, 50_000)))
    mechanism, honest = noise_of(long), config.min_survivors - config.max_colluders
    squares, draws = 0.0, 0
    while draws < DRAWS:
        words = [path(nothing(long), long, secure_random()) for _ in range(honest)]
        noise = sum(from_ring(vector, modulus_bits=long.modulus_bits) for vector in words)
        squares += float(np.sum(np.square(noise, dtype=np.float64)))
        draws += long.length
    ratio = squares / draws / float(honest * mechanism.share_variance)
    limit = 1 - SIGMAS * math.sqrt(2 / draws)
    return Check(
        name="variance",
        measured=ratio,
        limit=limit,
        passed=ratio >= limit,
        reason=f"noise variance over the claimed one; {SIGMAS:g} standard errors below 1 are allowed",
    )


def _streams(config: AggregationConfig, path: Path) -> Check:
    """Contributions of nothing are noise alone: no two may be equal."""
    short = with_length(config, 8)
    seen = {path(nothing(short), short, secure_random()).tobytes() for _ in range(STREAMS)}
    return Check(
        name="streams",
        measured=float(STREAMS - len(seen)),
        limit=0.0,
        passed=len(seen) == STREAMS,
        reason=f"contributions, of {STREAMS}, whose noise was used before",
    )


def _sensitivity(config: AggregationConfig, path: Path) -> Check:
    """How far the integers move when one unit is removed and every byte of randomness stays."""
    short = with_length(config, min(config.layout.length, REPLAYED))
    unit, bound = short.privacy, noise_of(short).int_bound
    furthest = max(_record_moves(short, unit, path) if isinstance(unit, RecordLevel) else _client_moves(short, path))
    return Check(
        name="sensitivity",
        measured=math.sqrt(furthest),
        limit=float(bound),
        passed=furthest <= bound**2,
        reason="L2 distance of the integers with and without one unit, on the same randomness",
    )


class _Tape:
    """Randomness that can be played again."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self._source = secure_random()

    def __call__(self, count: int) -> bytes:
        self.chunks.append(self._source(count))
        return self.chunks[-1]


def _played(chunks: list[bytes]) -> RandomBytes:
    """The chunks one after another; zeros where another path asks for something else."""
    remaining = iter(chunks)

    def rand(count: int) -> bytes:
        return next(remaining, b"")[:count].ljust(count, b"\0")

    return rand


def _client_moves(config: AggregationConfig, path: Path) -> Iterator[int]:
    """Squared distances between one client's integers and those of a client that sends zero."""
    for scale in (0.1, 1.0, 10.0, 1e6):
        update = scale * config.clip_norm * _direction(config.layout.length)
        tape = _Tape()
        words = path({"w": update}, config, tape)
        yield _distance(words, path(nothing(config), config, _played(tape.chunks)), config)


def _record_moves(config: AggregationConfig, privacy: RecordLevel, path: Path) -> Iterator[int]:
    """Squared distances that single records make; a removed record takes its own draw and coins along."""
    count = math.ceil(RECORDS / privacy.sampling_rate)
    # Most records agree and a few point the other way: whatever is divided by their number moves furthest for those.
    signs = np.where(np.arange(count) % 4 == 3, -1.0, 1.0)
    rows = 3 * privacy.clip_norm * signs[:, None] * _direction(config.layout.length)
    tape = _Tape()
    words = path({"w": rows}, config, tape)
    draws, rest = tape.chunks[0] if tape.chunks else bytes(8 * count), tape.chunks[1:]
    drawn = poisson_draw(count, rate=privacy.exact_rate, rand=_played([draws])).tolist()
    others = [record for record in range(min(count, 4 * RECORDS)) if record not in drawn][:4]
    for record in [*drawn[:RECORDS], *others]:
        kept = [draws[: 8 * record] + draws[8 * record + 8 :]]
        place = drawn.index(record) if record in drawn else len(rest)
        kept += rest[:place] + rest[place + 1 :]
        yield _distance(words, path({"w": np.delete(rows, record, axis=0)}, config, _played(kept)), config)
    yield 0  # no record was drawn


def _direction(length: int) -> NDArray[np.float64]:
    """A vector of norm 1, in any direction."""
    numbers = np.frombuffer(secure_random()(4 * length), dtype="<i4").astype(np.float64)
    return np.asarray(numbers / np.linalg.norm(numbers))


def _always_drawn(rand: RandomBytes) -> RandomBytes:
    """Randomness whose first word, the draw of a record, says yes."""
    first = True

    def forced(count: int) -> bytes:
        nonlocal first
        data, first = bytes(count) if first and count == 8 else rand(count), False
        return data

    return forced


def _distance(left: UInt32Vector, right: UInt32Vector, config: AggregationConfig) -> int:
    """Squared L2 distance of two ring vectors, as integers."""
    modulus = np.uint32(2**config.modulus_bits - 1)
    difference = from_ring((left - right) & modulus, modulus_bits=config.modulus_bits)
    return sum(int(step) ** 2 for step in difference)

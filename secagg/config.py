"""`AggregationConfig`: everything that is agreed before a round.

Users state who takes part, what may go wrong and what is protected; the rest is derived.

- `cross_silo`: 2 to 100 known institutions, complete graph, every client in every round.
- `cross_device`: larger cohorts, whose clients share masks with a few neighbours each.

Derived numbers are readable attributes, and `explain()` gives each with its reason. The digest of the configuration is
bound into every key and signature of a round: parties with different configurations cannot complete one.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dp import (
    LAWS,
    AdaptiveClipping,
    CapacityError,
    DistributedNoise,
    EpsilonLadder,
    IntegerEncoder,
    LocalRecordLevel,
    NoPrivacy,
    PrivacyBudget,
    PrivacyUnit,
    RecordLevel,
    best_order,
    calibrate,
    ladder,
)
from dp.encoding import coarsest_int_bound, least_int_bound
from dp.mechanisms import SHARE_STDDEVS
from dp.rotation import Rotation
from protocols import ClientPolicy, RoundConfig, required_threshold
from protocols.primitives.packing import LANE_BITS, NATIVE_BITS, packed_bytes
from protocols.session import MAX_COHORT

from .explain import Explanation, explain
from .layout import Arrays, Layout
from .neighbours import require_graph
from .privacy import UNITS, plain_numbers, privacy_unit
from .riders import NO_RIDERS, Riders, Weights
from .ring import Ring

MAX_SILOS = 100  # beyond it the complete graph's cost grows past that of a sparse one
COUNT_STDDEV = 0.05  # of the noised fraction of unclipped updates: what Andrew et al. recommend, where it costs little
LARGEST_INDICATOR = 0.25  # of int_bound: at most 3 % of the update's norm is given for it
COARSER_STDDEVS = (2048, 1024, 512, 256, 128, 64)  # of a share, for rings too small for the finer default
DROPOUT_NOISE = ("worst_case", "removable")
POISSON_REACH = 8  # standard deviations of a Poisson batch that the ring has room for: below 1e-14


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationConfig:
    """What server and clients agree on. Make one with `cross_silo` or `cross_device`.

    Attributes:
        layout: names, shapes and dtypes of an update.
        clients: n, clients invited to a round.
        max_dropouts: clients that may vanish in a round without voiding it.
        max_colluders: clients that may work with the server without voiding the guarantee.
        privacy: what is protected, and its budget.
        modulus_bits: bits of a lane of the masked vector.
        noise_law: of the clients' noise shares, "skellam" or "discrete_gaussian"; the same epsilon to four digits.
        dropout_noise: "worst_case", or "removable": the server takes out what only makes up for dropouts.
        application: free text that keeps rounds of different applications apart.
        riders: weights and metrics that travel in the same vector.
        degree: derived: neighbours that a client shares masks with.
        corrupt_holders: derived: colluders that may be among the holders of one client's secrets.
        threshold: derived: holders that must answer to reconstruct a secret.
        mechanism: derived: the calibrated noise of the sum; None if the sum gets none.
        clip_norm: derived: L2 bound of one unit in this round; with `AdaptiveClipping` each round has its own.
        rotation: derived: whether updates are rotated at random before they are rounded, because no lane of
            `modulus_bits` could hold them otherwise.

    Raises:
        ValueError: a number is out of its range, or numbers contradict each other; says which.
        CapacityError: no noise or ring fits; says what would.
    """

    layout: Layout
    clients: int
    max_dropouts: int
    max_colluders: int
    privacy: PrivacyUnit
    modulus_bits: int = 32
    noise_law: str = "skellam"
    dropout_noise: str = "worst_case"
    application: str = ""
    riders: Riders = NO_RIDERS
    degree: int = field(init=False)
    corrupt_holders: int = field(init=False)
    threshold: int = field(init=False)
    mechanism: DistributedNoise | None = field(init=False)
    clip_norm: float = field(init=False)
    rotation: bool = field(init=False)
    _digest: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, least in (("clients", 2), ("max_dropouts", 0), ("max_colluders", 0), ("modulus_bits", 1)):
            if type(value := getattr(self, name)) is not int or value < least:
                raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
        if self.clients > MAX_COHORT:  # before anything of that size is computed
            raise ValueError(f"clients must be at most {MAX_COHORT}, got {self.clients}: form smaller cohorts")
        if self.modulus_bits not in LANE_BITS:
            raise ValueError(f"modulus_bits must be one of {LANE_BITS}, got {self.modulus_bits}")
        if not isinstance(self.privacy, PrivacyUnit):
            raise ValueError(f"privacy must be one of {sorted(UNITS)}, got {type(self.privacy).__name__}")
        clip_norm = self.privacy.clip_norm
        initial = clip_norm.initial if isinstance(clip_norm, AdaptiveClipping) else clip_norm
        object.__setattr__(self, "clip_norm", float(initial))
        for name, choices in (("noise_law", tuple(LAWS)), ("dropout_noise", DROPOUT_NOISE)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {value!r}")
            if isinstance(self.privacy, NoPrivacy | LocalRecordLevel) and value != choices[0]:
                raise ValueError(f"{name} {value!r} has no meaning without privacy: the sum gets no noise")
        self._check_riders()
        self._derive_graph()
        self._derive_noise()
        self._derive_digest()
        self.round_config(round_id=bytes(32), model=bytes(32))  # validates what the protocol demands

    def _check_riders(self) -> None:
        if isinstance(self.privacy, LocalRecordLevel) and self.riders.count:
            raise ValueError("LocalRecordLevel takes no metrics and no private weights: they would ride without noise")
        if self.riders.weights is None:
            return
        if isinstance(self.privacy, RecordLevel):
            raise ValueError("records all weigh the same: RecordLevel takes no weights")
        if isinstance(self.riders.weights, tuple) and len(self.riders.weights) < self.clients:
            raise ValueError(f"{self.clients} clients need a public weight each, got {len(self.riders.weights)}")

    def _derive_graph(self) -> None:
        chosen = require_graph(self.clients, max_colluders=self.max_colluders, max_dropouts=self.max_dropouts)
        threshold = required_threshold(holders=chosen.degree + 1, corrupt_holders=chosen.corrupt_holders)
        object.__setattr__(self, "degree", chosen.degree)
        object.__setattr__(self, "corrupt_holders", chosen.corrupt_holders)
        object.__setattr__(self, "threshold", threshold)

    def _derive_noise(self) -> None:
        mechanism = None
        object.__setattr__(self, "rotation", False)
        if not isinstance(self.privacy, NoPrivacy | LocalRecordLevel):
            if self.clients == 2:
                raise ValueError("between two clients nothing is hidden: distributed noise needs at least 3")
            fit = partial(
                calibrate,
                self.privacy,
                dimension=self.length,
                clients=self.clients,
                min_survivors=self.min_survivors,
                max_colluders=self.max_colluders,
                law=self.noise_law,
                removable=self.dropout_noise == "removable",
            )
            mechanism = finest = fit()
            object.__setattr__(self, "mechanism", mechanism)
            finer = [stddev for stddev in reversed(SHARE_STDDEVS) if stddev**2 < mechanism.share_variance]
            for coarser in (*finer, *COARSER_STDDEVS):
                if self.needed_bits <= self.modulus_bits or self.modulus_bits not in NATIVE_BITS:
                    break
                try:
                    mechanism = fit(share_stddevs=(coarser,))
                except CapacityError:
                    break  # a step that coarse is too coarse for the model: only a rotation helps
                object.__setattr__(self, "mechanism", mechanism)
        object.__setattr__(self, "mechanism", mechanism)
        if mechanism is not None and self.modulus_bits not in NATIVE_BITS:
            raise ValueError(
                f"noised sums need lanes of {sorted(NATIVE_BITS)} bits, got {self.modulus_bits}: noise has no largest "
                "value, and lanes that share a word would carry"
            )
        if mechanism is not None and self.modulus_bits < self.needed_bits:
            # No coarser steps allow a larger ratio: noise that is less fine costs more for the same variance.
            share = self.ring.rotated_share(int_bound=finest.int_bound + 1, share_variance=finest.share_variance)
            # One rounding of a sum has no probable bound: its steps stay as fine as ever.
            summed = isinstance(self.privacy, RecordLevel) and self.privacy.rounding == "sum"
            rotated = fit(share_stddevs=(share,), least=None if summed else coarsest_int_bound(self.length))
            object.__setattr__(self, "mechanism", rotated)
            object.__setattr__(self, "rotation", True)
        if mechanism is None and self.ring.room < least_int_bound(self.length):
            object.__setattr__(self, "rotation", True)
            self.ring.require_rotated_bound()

    def _derive_digest(self) -> None:
        object.__setattr__(self, "_digest", sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).digest())

    @classmethod
    def cross_silo(
        cls,
        *,
        like: Arrays,
        clients: int,
        max_dropouts: int,
        max_colluders: int,
        privacy: PrivacyUnit,
        modulus_bits: int = 32,
        noise_law: str = "skellam",
        dropout_noise: str = "worst_case",
        application: str = "",
        weights: Weights = None,
        metrics: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    ) -> AggregationConfig:
        """A few known institutions that all take part: the complete graph (SecAgg).

        Args:
            like: arrays with the names, shapes and dtypes of an update; values do not matter.
            clients: from 2 to 100.
            max_dropouts: how many may vanish.
            max_colluders: how many may work with the server; there is no default, since it is a claim about people.
            privacy: `ClientLevel`, `RecordLevel`, `LocalRecordLevel` or `NoPrivacy`.
            modulus_bits: 32 (default) or 16; without privacy also 8, 10, 12 or 21.
            noise_law: "skellam" (default) or "discrete_gaussian".
            dropout_noise: "worst_case" (default), or "removable": least noise, more traffic, complete graph, Skellam.
            application: free text that keeps different applications apart.
            weights: None: all updates weigh the same; a number for each client id, which everybody knows; or
                `PrivateWeights`, which ride masked and noised in the same vector.
            metrics: for each name the least and largest value; they ride likewise, and the result has their mean.

        Raises:
            ValueError: numbers contradict each other; says which.
            CapacityError: no noise or ring fits; says what would.
        """
        if not 2 <= clients <= MAX_SILOS:
            raise ValueError(f"cross_silo takes 2 to {MAX_SILOS} clients, got {clients}: use cross_device for more")
        return cls.cross_device(
            like=like,
            clients=clients,
            max_dropouts=max_dropouts,
            max_colluders=max_colluders,
            privacy=privacy,
            modulus_bits=modulus_bits,
            noise_law=noise_law,
            dropout_noise=dropout_noise,
            application=application,
            weights=weights,
            metrics=metrics,
        )

    @classmethod
    def cross_device(
        cls,
        *,
        like: Arrays,
        clients: int,
        max_dropouts: int,
        max_colluders: int,
        privacy: PrivacyUnit,
        modulus_bits: int = 32,
        noise_law: str = "skellam",
        dropout_noise: str = "worst_case",
        application: str = "",
        weights: Weights = None,
        metrics: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    ) -> AggregationConfig:
        """A large cohort: each client shares masks with a few neighbours only (SecAgg+). Arguments as for `cross_silo`.

        The neighbour graph is drawn from the keys of all clients. Its degree keeps the chance that any honest client is
        exposed below 2^-40 even after the server tried 2^40 cohorts, and the chance that a round fails for lack of
        neighbours below 2^-30. Up to 100 clients it is the complete graph.
        """
        return cls(
            layout=Layout.of(like),
            clients=clients,
            max_dropouts=max_dropouts,
            max_colluders=max_colluders,
            privacy=privacy,
            modulus_bits=modulus_bits,
            noise_law=noise_law,
            dropout_noise=dropout_noise,
            application=application,
            riders=Riders.of(weights, metrics),
        )

    @property
    def length(self) -> int:
        """Coordinates of the masked vector: the update's, those of what rides along, and one for an adaptive clip."""
        return self.layout.length + self.riders.count + (self.adaptive is not None)

    @property
    def adaptive(self) -> AdaptiveClipping | None:
        """How the clip norm moves; None if it is fixed."""
        clip_norm = self.privacy.clip_norm
        return clip_norm if isinstance(clip_norm, AdaptiveClipping) else None

    @property
    def indicator(self) -> float:
        """Magnitude of the coordinate that says whether an update was clipped, over int_bound; 0 without one.

        As large as it takes to read the fraction of a full round at `COUNT_STDDEV`, or the most that is given for it.
        """
        return min(self._relative_noise() / (2 * COUNT_STDDEV), LARGEST_INDICATOR)

    @property
    def count_stddev(self) -> float | None:
        """Standard deviation of the noised fraction of unclipped updates in a full round; None with a fixed norm."""
        return None if self.adaptive is None else self._relative_noise() / (2 * self.indicator)

    def with_clip_norm(self, clip_norm: float) -> AggregationConfig:
        """The configuration of a round with this clip norm. Noise and epsilon do not depend on it.

        Raises:
            ValueError: the norm is fixed, or no honest course of the planned rounds leads there.
        """
        if self.adaptive is None or isinstance(self.privacy, NoPrivacy):
            if clip_norm != self.clip_norm:
                raise ValueError(f"the clip norm is fixed at {self.clip_norm}, got {clip_norm}")
            return self
        low, high = self.adaptive.bounds(self.privacy.rounds)
        if not low <= clip_norm <= high:
            raise ValueError(f"the clip norm can only come to lie in [{low:.6g}, {high:.6g}], got {clip_norm}")
        config = copy(self)
        object.__setattr__(config, "clip_norm", float(clip_norm))
        config._derive_digest()
        return config

    def next_clip_norm(self, unclipped: float) -> float:
        """The clip norm of the next round, from this round's noised fraction of unclipped updates."""
        if self.adaptive is None or isinstance(self.privacy, NoPrivacy):
            return self.clip_norm
        low, high = self.adaptive.bounds(self.privacy.rounds)
        return min(max(self.adaptive.following(self.clip_norm, unclipped=unclipped), low), high)

    def _relative_noise(self) -> float:
        """Deviation per coordinate of the mean of a full round, over int_bound; 0 with a fixed clip norm."""
        if self.adaptive is None or self.mechanism is None:
            return 0.0
        return math.sqrt(self.mechanism.residual_variance(self.clients) / self.clients) / self.mechanism.int_bound

    @property
    def min_survivors(self) -> int:
        """The smallest group whose sum is ever revealed."""
        return self.clients - self.max_dropouts

    @property
    def encoder(self) -> IntegerEncoder:
        """Floats to integers: with privacy at the calibrated bound, else as fine as the ring allows."""
        bound = self.ring.rotated_bound() if self.rotation else self.ring.room
        if self.mechanism is not None:
            bound = self.mechanism.int_bound
        norm = self.riders.total_norm(self.clip_norm)
        if self.adaptive is None:
            return IntegerEncoder(clip_norm=norm, int_bound=bound)
        # The indicator needs to come through in full beside a clipped update: scale so that rounding has room for both.
        kept = IntegerEncoder(clip_norm=1.0, int_bound=bound).first_clip(self.length) * (1 - 1e-9)
        return IntegerEncoder(clip_norm=norm / kept / math.sqrt(1 - self.indicator**2), int_bound=bound)

    @property
    def offset(self) -> int:
        """What is added to each coordinate before it enters a lane: lanes that share a word must not go below zero."""
        return self.ring.offset

    @property
    def needed_bits(self) -> int:
        """The smallest ring that holds the sum: without a rotation the signal never wraps, noise at 7.5 stddevs."""
        return self.ring.needed_bits(**self._loads())

    @property
    def wrap_probability(self) -> float:
        """Bound on the chance that one coordinate of one round's sum wraps."""
        return self.ring.wrap_probability(**self._loads())

    @property
    def expected_wraps(self) -> float:
        """Bound on the expected number of coordinates per round that wrap: it costs accuracy, never privacy."""
        return self.length * self.wrap_probability

    @property
    def upload_bytes(self) -> int:
        """Size of one masked vector; the other messages of a client are a few kilobytes."""
        return packed_bytes(self.length, self.modulus_bits)

    @property
    def removable(self) -> int:
        """T, components of a client's noise that are taken out again unless clients drop out."""
        return self.max_dropouts if self.dropout_noise == "removable" else 0

    def policy(self) -> ClientPolicy:
        """The floors that a client of this configuration enforces."""
        return ClientPolicy(
            min_survivors=self.min_survivors, corrupt_holders=self.corrupt_holders, noised=self.mechanism is not None
        )

    def denominator(self, survivors: int) -> float:
        """What an unweighted sum over `survivors` is divided by: a public number."""
        if isinstance(self.privacy, RecordLevel):
            return self.privacy.denominator * survivors / self.clients
        return float(survivors)

    def budget(self) -> PrivacyBudget | None:
        """The budget for a ledger, at the one Renyi order that carries the planned rounds; None if rounds cost nothing.

        With `LocalRecordLevel` a client's steps cost, not its rounds: see `dp.planned_budget`.
        """
        if self.mechanism is None or isinstance(self.privacy, NoPrivacy | LocalRecordLevel):
            return None
        planned = {self.mechanism.event(survivors=self.min_survivors): self.privacy.rounds}
        return PrivacyBudget(
            epsilon=self.privacy.epsilon,
            delta=self.privacy.delta,
            unit=self.privacy.unit,
            order=best_order(planned, self.privacy.delta),
        )

    def ladder(self, *, survivors: int | None = None, rounds: int | None = None) -> EpsilonLadder | None:
        """Epsilon under falling trust, over the planned rounds unless told otherwise; None where it rests on nobody."""
        if self.mechanism is None or isinstance(self.privacy, NoPrivacy | LocalRecordLevel):
            return None
        return ladder(
            self.mechanism,
            rounds=self.privacy.rounds if rounds is None else rounds,
            delta=self.privacy.delta,
            survivors=survivors,
        )

    @property
    def relative_error(self) -> float | None:
        """Expected L2 norm of the noise in the released mean at the fewest survivors, over the clip norm.

        With private weights, as if every weight were the largest.
        """
        if self.mechanism is None:
            return None
        noise = self.noise_stddev(self.min_survivors) * math.sqrt(self.layout.length)
        return noise / self.clip_norm / self.riders.least_divisor(self.denominator(self.min_survivors))

    def noise_stddev(self, survivors: int) -> float:
        """Standard deviation of the noise on each coordinate of a sum over `survivors`, in units of the update."""
        if self.mechanism is None:
            return 0.0
        step = self.encoder.clip_norm / self.encoder.int_bound
        return math.sqrt(survivors * self.mechanism.residual_variance(survivors)) * step

    def round_config(self, *, round_id: bytes, model: bytes) -> RoundConfig:
        """The protocol's parameters for one round on one model."""
        return RoundConfig(
            round_id=round_id,
            cohort=self.clients,
            threshold=self.threshold,
            min_survivors=self.min_survivors,
            degree=self.degree,
            corrupt_holders=self.corrupt_holders,
            length=self.length,
            modulus_bits=self.modulus_bits,
            model=model,
            binding=self._digest,
            removable=self.removable,
        )

    def round_seed(self, *, round_id: bytes, model: bytes) -> bytes:
        """The public seed of a round's rotation, the same at all parties of one round on one model."""
        return sha256(b"secagg/v1/round-seed" + round_id + model + self._digest).digest()

    def rotation_of(self, seed: bytes) -> Rotation | None:
        """The rotation of the round with this public seed; None if this configuration has none.

        Raises:
            ValueError: the configuration rotates, and the seed is empty.
        """
        if not self.rotation:
            return None
        if not seed:
            raise ValueError("this configuration rotates updates: the round's public seed is needed (round_seed)")
        return Rotation(self.length, seed=seed)

    # As text.

    def digest(self) -> bytes:
        """SHA-256 over the canonical form of all fields."""
        return self._digest

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; derived numbers are included so that a change of rules between versions is noticed."""
        mechanism = self.mechanism
        return {
            "layout": self.layout.to_dict(),
            "clients": self.clients,
            "max_dropouts": self.max_dropouts,
            "max_colluders": self.max_colluders,
            "degree": self.degree,
            "corrupt_holders": self.corrupt_holders,
            "threshold": self.threshold,
            "modulus_bits": self.modulus_bits,
            "privacy": {"unit": self.privacy.unit, **plain_numbers(asdict(self.privacy))},
            "application": self.application,
            "riders": self.riders.to_dict(),
            "int_bound": self.encoder.int_bound,
            "clip_norm": self.clip_norm,
            "rotation": self.rotation,
            "noise_law": None if mechanism is None else mechanism.law,
            "dropout_noise": None if mechanism is None else self.dropout_noise,
            "share_variance": None if mechanism is None else str(mechanism.share_variance),
        }

    @classmethod
    def from_toml(cls, path: str | Path, *, like: Arrays) -> AggregationConfig:
        """Reads a configuration from a TOML file; the layout comes from the model.

        The file has `kind = "cross_silo"` or `"cross_device"`, the arguments of that preset, and a table `[privacy]`
        with `unit = "client" | "record" | "local_record" | "none"` and the arguments of that unit.

        Raises:
            ValueError: the file is not UTF-8 TOML, or has unknown, missing or wrong entries; says which.
        """
        try:
            data = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{path} is not a UTF-8 TOML file: {error}") from None
        presets = {"cross_silo": cls.cross_silo, "cross_device": cls.cross_device}
        kind = data.pop("kind", None)
        if not isinstance(kind, str) or kind not in presets:
            raise ValueError(f"{path}: kind must be one of {sorted(presets)}, got {kind!r}")
        try:
            return presets[kind](like=like, privacy=privacy_unit(data.pop("privacy", {})), **data)
        except TypeError as error:
            raise ValueError(f"{path}: {error}") from None

    def explain(self) -> list[Explanation]:
        """Every derived number with its reason, in reading order."""
        return explain(self)

    @property
    def ring(self) -> Ring:
        """What the lanes have room for."""
        return Ring(
            modulus_bits=self.modulus_bits, length=self.length, clients=self.clients, units=self._units_in_sum()
        )

    def _loads(self) -> dict[str, Any]:
        """What the lanes have to hold."""
        variance = 0.0 if self.mechanism is None else float(self.clients * self.mechanism.share_variance)
        return {"int_bound": self.encoder.int_bound, "variance": variance, "rotated": self.rotation}

    def _units_in_sum(self) -> int:
        """How many clipped units a sum holds: clients, or a generous bound on sampled records."""
        if not isinstance(self.privacy, RecordLevel):
            return self.clients
        expected = self.privacy.denominator
        return min(self.privacy.records, math.ceil(expected + POISSON_REACH * math.sqrt(expected) + 2 * POISSON_REACH))

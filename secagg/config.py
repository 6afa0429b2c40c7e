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
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from dp import (
    CapacityError,
    ClientLevel,
    DistributedSkellam,
    EpsilonLadder,
    IntegerEncoder,
    NoPrivacy,
    PrivacyBudget,
    PrivacyUnit,
    RecordLevel,
    best_order,
    calibrate,
    ladder,
    required_bits,
)
from dp.encoding import MAX_INT_BOUND
from protocols import ClientPolicy, RoundConfig, required_threshold
from protocols.graph import Degree, choose_degree
from protocols.primitives.packing import NATIVE_BITS, packed_bytes

from .explain import Explanation, explain
from .layout import Arrays, Layout

MAX_SILOS = 100  # beyond it the complete graph's cost grows past that of a sparse one
UNITS: dict[str, type[ClientLevel] | type[RecordLevel] | type[NoPrivacy]] = {
    "client": ClientLevel,
    "record": RecordLevel,
    "none": NoPrivacy,
}
POISSON_REACH = 8  # standard deviations of a Poisson batch that the ring has room for: below 1e-14


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationConfig:
    """What server and clients agree on. Make one with `cross_silo` or `cross_device`.

    Attributes:
        layout: names, shapes and dtypes of an update.
        clients: n, clients invited to a round.
        max_dropouts: clients that may vanish in a round without voiding it.
        max_colluders: clients that may work with the server without voiding the guarantee.
        degree: neighbours that a client shares masks with.
        corrupt_holders: colluders that may be among the holders of one client's secrets.
        threshold: holders that must answer to reconstruct a secret.
        modulus_bits: bits of a lane of the masked vector.
        privacy: what is protected, and its budget.
        application: free text that keeps rounds of different applications apart.
        mechanism: the calibrated noise; None without privacy.

    Raises:
        ValueError: a number is out of its range, or numbers contradict each other.
        CapacityError: the ring cannot hold the sum; names the bits that can.
    """

    layout: Layout
    clients: int
    max_dropouts: int
    max_colluders: int
    degree: int
    corrupt_holders: int
    threshold: int
    modulus_bits: int
    privacy: PrivacyUnit
    application: str
    mechanism: DistributedSkellam | None
    _digest: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.round_config(round_id=bytes(32), model=bytes(32), binding=bytes(32))  # validates all protocol parameters
        if not 0 <= self.max_colluders < self.clients:
            raise ValueError(f"max_colluders must be from 0 to {self.clients - 1}, got {self.max_colluders}")
        self._check_mechanism()
        if self.mechanism is not None and self.modulus_bits < self.needed_bits:
            raise CapacityError(
                f"{self.modulus_bits} bits cannot hold the sum: {self.needed_bits} are needed for "
                f"{self._units_in_sum()} units of integer norm {self.mechanism.int_bound} with noise at 7.5 stddevs"
            )
        if self.mechanism is not None and self.modulus_bits not in NATIVE_BITS:
            raise ValueError(f"noised sums need lanes of {sorted(NATIVE_BITS)} bits, got {self.modulus_bits}")
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
        application: str = "",
    ) -> AggregationConfig:
        """A few known institutions that all take part: the complete graph (SecAgg).

        Args:
            like: arrays with the names, shapes and dtypes of an update; values do not matter.
            clients: from 2 to 100.
            max_dropouts: how many may vanish.
            max_colluders: how many may work with the server; there is no default, since it is a claim about people.
            privacy: `ClientLevel`, `RecordLevel` or `NoPrivacy`.
            modulus_bits: 32 (default); without privacy also 8, 10, 12, 16 or 21.
            application: free text that keeps different applications apart.

        Raises:
            ValueError: numbers contradict each other; says which.
            CapacityError: no noise or ring fits; says what would.
        """
        if not 2 <= clients <= MAX_SILOS:
            raise ValueError(f"cross_silo takes 2 to {MAX_SILOS} clients, got {clients}: use cross_device for more")
        return cls._derive(
            Layout.of(like), clients, max_dropouts, max_colluders, privacy, modulus_bits, application,
            Degree(degree=clients - 1, corrupt_holders=max_colluders),
        )  # fmt: skip

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
        application: str = "",
    ) -> AggregationConfig:
        """A large cohort: each client shares masks with a few neighbours only (SecAgg+). Arguments as for `cross_silo`.

        The neighbour graph is drawn from the keys of all clients. Its degree keeps the chance that any honest client is
        exposed below 2^-40 even after the server tried 2^40 cohorts, and the chance that a round fails for lack of
        neighbours below 2^-30.
        """
        degree = choose_degree(clients=clients, max_colluders=max_colluders, max_dropouts=max_dropouts)
        return cls._derive(
            Layout.of(like), clients, max_dropouts, max_colluders, privacy, modulus_bits, application, degree
        )

    @classmethod
    def _derive(
        cls,
        layout: Layout,
        clients: int,
        max_dropouts: int,
        max_colluders: int,
        privacy: PrivacyUnit,
        modulus_bits: int,
        application: str,
        degree: Degree,
    ) -> AggregationConfig:
        threshold = required_threshold(cohort=clients, degree=degree.degree, corrupt_holders=degree.corrupt_holders)
        if degree.degree == clients - 1 and clients - max_dropouts < threshold:
            most = clients - threshold
            raise ValueError(
                f"with {clients} clients and {max_colluders} colluders, {threshold} must stay: "
                f"max_dropouts can be at most {most}, got {max_dropouts}"
            )
        mechanism = None
        if not isinstance(privacy, NoPrivacy):
            mechanism = calibrate(
                privacy,
                dimension=layout.length,
                clients=clients,
                min_survivors=clients - max_dropouts,
                max_colluders=max_colluders,
            )
        return cls(
            layout=layout,
            clients=clients,
            max_dropouts=max_dropouts,
            max_colluders=max_colluders,
            degree=degree.degree,
            corrupt_holders=degree.corrupt_holders,
            threshold=threshold,
            modulus_bits=modulus_bits,
            privacy=privacy,
            application=application,
            mechanism=mechanism,
        )

    # Derived numbers.

    @property
    def min_survivors(self) -> int:
        """The smallest group whose sum is ever revealed."""
        return self.clients - self.max_dropouts

    @property
    def encoder(self) -> IntegerEncoder:
        """Floats to integers: with privacy at the calibrated bound, else as fine as the ring allows."""
        if self.mechanism is not None:
            return IntegerEncoder(clip_norm=self.privacy.clip_norm, int_bound=self.mechanism.int_bound)
        room = (2**self.modulus_bits - 1) // (2 * self.clients)
        return IntegerEncoder(clip_norm=self.privacy.clip_norm, int_bound=min(room, MAX_INT_BOUND))

    @property
    def offset(self) -> int:
        """What is added to each coordinate before it enters a lane: lanes that share a word must not go below zero."""
        return 0 if self.modulus_bits in NATIVE_BITS else self.encoder.int_bound

    @property
    def needed_bits(self) -> int:
        """The smallest ring in which the signal cannot wrap, noise at 7.5 standard deviations included."""
        stddev = math.sqrt(self.clients * self.mechanism.share_variance) if self.mechanism is not None else 0.0
        return required_bits(units=self._units_in_sum(), int_bound=self.encoder.int_bound, stddev=stddev)

    @property
    def upload_bytes(self) -> int:
        """Size of one masked vector; the other messages of a client are a few kilobytes."""
        return packed_bytes(self.layout.length, self.modulus_bits)

    def policy(self) -> ClientPolicy:
        """The floors that a client of this configuration enforces."""
        return ClientPolicy(
            min_survivors=self.min_survivors, corrupt_holders=self.corrupt_holders, noised=self.mechanism is not None
        )

    def denominator(self, survivors: int) -> float:
        """What a sum over `survivors` is divided by: a public number."""
        if isinstance(self.privacy, RecordLevel):
            return self.privacy.denominator * survivors / self.clients
        return float(survivors)

    def budget(self) -> PrivacyBudget | None:
        """The budget for a ledger, at the one Renyi order that carries the planned rounds; None without privacy."""
        if self.mechanism is None or isinstance(self.privacy, NoPrivacy):
            return None
        planned = {self.mechanism.event(survivors=self.min_survivors): self.privacy.rounds}
        return PrivacyBudget(
            epsilon=self.privacy.epsilon,
            delta=self.privacy.delta,
            unit=self.privacy.unit,
            order=best_order(planned, self.privacy.delta),
        )

    def ladder(self, *, survivors: int | None = None, rounds: int | None = None) -> EpsilonLadder | None:
        """Epsilon under falling trust, over the planned rounds unless told otherwise; None without privacy."""
        if self.mechanism is None or isinstance(self.privacy, NoPrivacy):
            return None
        return ladder(
            self.mechanism,
            rounds=self.privacy.rounds if rounds is None else rounds,
            delta=self.privacy.delta,
            survivors=survivors,
        )

    @property
    def relative_error(self) -> float | None:
        """Expected L2 norm of the noise in the released mean at the fewest survivors, over the clip norm."""
        if self.mechanism is None:
            return None
        noise = math.sqrt(self.min_survivors * self.mechanism.share_variance * self.layout.length)
        return noise / self.mechanism.int_bound / self.denominator(self.min_survivors)

    def round_config(self, *, round_id: bytes, model: bytes, binding: bytes | None = None) -> RoundConfig:
        """The protocol's parameters for one round on one model."""
        return RoundConfig(
            round_id=round_id,
            cohort=self.clients,
            threshold=self.threshold,
            min_survivors=self.min_survivors,
            degree=self.degree,
            corrupt_holders=self.corrupt_holders,
            length=self.layout.length,
            modulus_bits=self.modulus_bits,
            model=model,
            binding=self.digest() if binding is None else binding,
        )

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
            "privacy": {"unit": self.privacy.unit, **asdict(self.privacy)},
            "application": self.application,
            "int_bound": self.encoder.int_bound,
            "share_variance": None if mechanism is None else str(mechanism.share_variance),
        }

    @classmethod
    def from_toml(cls, path: str | Path, *, like: Arrays) -> AggregationConfig:
        """Reads a configuration from a TOML file; the layout comes from the model.

        The file has `kind = "cross_silo"` or `"cross_device"`, the arguments of that preset, and a table `[privacy]`
        with `unit = "client" | "record" | "none"` and the arguments of that unit.

        Raises:
            ValueError: the file is not UTF-8 TOML, or has unknown, missing or wrong entries; says which.
        """
        try:
            data = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{path} is not a UTF-8 TOML file: {error}") from None
        presets = {"cross_silo": cls.cross_silo, "cross_device": cls.cross_device}
        kind = data.pop("kind", None)
        if kind not in presets:
            raise ValueError(f"{path}: kind must be one of {sorted(presets)}, got {kind!r}")
        try:
            return presets[kind](like=like, privacy=privacy_unit(data.pop("privacy", {})), **data)
        except TypeError as error:
            raise ValueError(f"{path}: {error}") from None

    def explain(self) -> list[Explanation]:
        """Every derived number with its reason, in reading order."""
        return explain(self)

    def _check_mechanism(self) -> None:
        """Noise exactly where privacy is promised, and calibrated for these clients and this model."""
        if (self.mechanism is None) != isinstance(self.privacy, NoPrivacy):
            raise ValueError(f"unit {self.privacy.unit!r} and mechanism {self.mechanism} contradict each other")
        if self.mechanism is None:
            return
        rate = self.privacy.exact_rate if isinstance(self.privacy, RecordLevel) else 1
        agreed = (self.layout.length, self.clients, self.min_survivors, self.max_colluders, rate)
        mechanism = self.mechanism
        made_for = (
            mechanism.dimension,
            mechanism.clients,
            mechanism.min_survivors,
            mechanism.max_colluders,
            mechanism.sampling_rate,
        )
        if made_for != agreed:
            raise ValueError(
                "the mechanism was made for (dimension, clients, min_survivors, max_colluders, rate) = "
                f"{made_for}, not {agreed}: make configurations with cross_silo or cross_device"
            )

    def _units_in_sum(self) -> int:
        """How many clipped units a sum holds: clients, or a generous bound on sampled records."""
        if not isinstance(self.privacy, RecordLevel):
            return self.clients
        expected = self.privacy.denominator
        return min(self.privacy.records, math.ceil(expected + POISSON_REACH * math.sqrt(expected) + 2 * POISSON_REACH))


def privacy_unit(data: Mapping[str, Any]) -> PrivacyUnit:
    """A privacy unit from plain data: `unit` and that unit's arguments.

    Raises:
        ValueError: the unit is unknown, or an argument is missing, unknown or wrong.
    """
    arguments = dict(data)
    name = arguments.pop("unit", None)
    if name not in UNITS:
        raise ValueError(f"privacy unit must be one of {sorted(UNITS)}, got {name!r}")
    try:
        return UNITS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"privacy unit {name!r}: {error}") from None

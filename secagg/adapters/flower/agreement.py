"""What the parties of a Flower federation agree on, as flat kebab-case keys.

The same keys stand in the run configuration of a Flower app (`[tool.flwr.app.config]`), from which the server takes
them, and in `agreement.toml` of every node. A node goes by its own file: a run that proposes anything else is refused,
and the refusal names the keys.

- All keys start with `secagg-`; one that is not known is refused, for a misspelt bound is no bound.
- `secagg-privacy` is "client" (the default), with `secagg-epsilon`, `secagg-delta` and `secagg-rounds`, or "none".
- `secagg-adaptive-clipping = true`: `secagg-clip-norm` is where the clip norm starts; it follows the median of the
  updates' norms within the same budget.
- Weights: `secagg-largest-weight = 500` lets each client weigh its update by its own number of examples, masked and
  noised; `secagg-public-weights = "1:120 2:80"` fixes the weight of each client; neither: all weigh the same.
- `secagg-metrics = "train_loss:0:10 accuracy:0:1"`: names with their least and largest value. Other metrics stay on
  the node.

Example:
    >>> agreement = Agreement.of({"secagg-clients": 8, "secagg-max-dropouts": 2, "secagg-max-colluders": 1,
    ...     "secagg-clip-norm": 1.0, "secagg-epsilon": 8.0, "secagg-delta": 1e-5, "secagg-rounds": 10, "lr": 0.1})
    >>> agreement.clients, agreement.privacy.epsilon
    (8, 8.0)
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from dp import AdaptiveClipping, ClientLevel, NoPrivacy, PrivacyUnit
from protocols import PolicyRefusal

from ...config import AggregationConfig
from ...layout import Layout
from ...riders import PrivateWeights, Riders, Weights

PREFIX = "secagg-"
PROTOCOLS = ("pairwise",)
_COUNTS = ("clients", "max-dropouts", "max-colluders")
_BUDGET = ("epsilon", "delta", "rounds")
_OPTIONAL = (
    "privacy", "adaptive-clipping", "dropout-noise", "protocol", "modulus-bits", "application", "largest-weight",
    "public-weights", "metrics", *_BUDGET,
)  # fmt: skip
KEYS = frozenset(PREFIX + name for name in (*_COUNTS, "clip-norm", *_OPTIONAL))
# Where the server of a run keeps its things, and how long it waits: no node needs to agree.
SERVER_KEYS = frozenset(PREFIX + name for name in ("roster", "ledger", "simulation", "stage-timeout"))

Value = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The agreed values; everything but the shape of the model.

    Attributes:
        clients: n, clients on the roster; all take part in every round.
        max_dropouts: clients that may vanish in a round.
        max_colluders: clients that may work with the server.
        privacy: what is protected, and its budget.
        riders: weights and metrics.
        modulus_bits: bits of a lane of the masked vector.
        application: free text that keeps different applications apart.
        dropout_noise: "worst_case", or "removable": the server takes out what only makes up for dropouts.
        protocol: how vectors are masked.
    """

    clients: int
    max_dropouts: int
    max_colluders: int
    privacy: PrivacyUnit
    riders: Riders
    modulus_bits: int = 32
    application: str = ""
    dropout_noise: str = "worst_case"
    protocol: str = PROTOCOLS[0]

    @classmethod
    def of(cls, settings: Mapping[str, object]) -> Agreement:
        """Reads the `secagg-` keys of a run configuration; other keys are the app's own.

        Raises:
            ValueError: a key is missing, unknown or has a wrong value; names it.
        """
        own = {name: value for name, value in settings.items() if name.startswith(PREFIX)}
        unknown = sorted(set(own) - KEYS - SERVER_KEYS)
        if unknown:
            raise ValueError(f"unknown keys {unknown}: known are {sorted(KEYS | SERVER_KEYS)}")
        values = {name.removeprefix(PREFIX): value for name, value in own.items() if name in KEYS}
        protocol = _text(values, "protocol", PROTOCOLS[0])
        if protocol not in PROTOCOLS:
            raise ValueError(f"secagg-protocol must be one of {PROTOCOLS}, got {protocol!r}")
        return cls(
            clients=_integer(values, "clients"),
            max_dropouts=_integer(values, "max-dropouts"),
            max_colluders=_integer(values, "max-colluders"),
            privacy=_privacy(values),
            riders=Riders.of(_weights(values), _metrics(_text(values, "metrics", ""))),
            modulus_bits=_integer(values, "modulus-bits", 32),
            application=_text(values, "application", ""),
            dropout_noise=_text(values, "dropout-noise", "worst_case"),
            protocol=protocol,
        )

    @classmethod
    def read(cls, path: Path) -> Agreement:
        """Reads a TOML file of these keys.

        Raises:
            PolicyRefusal: the file is missing or not usable: without it a node has agreed to nothing.
        """
        try:
            return cls.of(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise PolicyRefusal(f"the agreement {path} cannot be used: {error}") from None

    def config(self, layout: Layout, instructions: str = "", *, clip_norm: float | None = None) -> AggregationConfig:
        """The configuration of a round on a model of that layout.

        Args:
            layout: names, shapes and dtypes of the model.
            instructions: digest of the train configuration (`records.instructions_of`); bound into every key of the
                round, so that all clients get the same.
            clip_norm: this round's, with adaptive clipping; by default the initial one.

        Raises:
            ValueError: numbers contradict each other, or no honest course leads to this clip norm; says which.
            CapacityError: no noise or ring fits; says what would.
        """
        config = AggregationConfig(
            layout=layout,
            clients=self.clients,
            max_dropouts=self.max_dropouts,
            max_colluders=self.max_colluders,
            privacy=self.privacy,
            modulus_bits=self.modulus_bits,
            application=f"{self.application}/{instructions}" if instructions else self.application,
            riders=self.riders,
            dropout_noise=self.dropout_noise,
        )
        return config if clip_norm is None else config.with_clip_norm(clip_norm)

    def to_text(self) -> str:
        """Canonical JSON of all values, as it travels to the nodes."""
        return json.dumps(self._values(), sort_keys=True, separators=(",", ":"))

    def check(self, proposed: str) -> None:
        """Refuses a proposal that differs from this agreement.

        Raises:
            PolicyRefusal: names what differs.
        """
        own = self._values()
        try:
            other = json.loads(proposed)
        except ValueError:
            other = None
        if not isinstance(other, dict):
            raise PolicyRefusal("the server's proposal is not a set of keys and values")
        differing = [
            f"{name} = {other.get(name)!r} (agreed: {own.get(name)!r})"
            for name in sorted(own.keys() | other.keys())
            if own.get(name) != other.get(name)
        ]
        if differing:
            raise PolicyRefusal(f"the server proposes what this node did not agree to: {', '.join(differing)}")

    def _values(self) -> dict[str, object]:
        """By the names of the keys, in plain JSON types."""
        privacy: dict[str, object] = {"privacy": "none"}
        if isinstance(self.privacy, ClientLevel):
            privacy = {
                "privacy": "client",
                "epsilon": float(self.privacy.epsilon),
                "delta": float(self.privacy.delta),
                "rounds": self.privacy.rounds,
            }
        clip_norm = self.privacy.clip_norm
        values: dict[str, object] = {
            "clients": self.clients,
            "max-dropouts": self.max_dropouts,
            "max-colluders": self.max_colluders,
            "clip-norm": clip_norm.initial if isinstance(clip_norm, AdaptiveClipping) else float(clip_norm),
            "adaptive-clipping": isinstance(clip_norm, AdaptiveClipping),
            "modulus-bits": self.modulus_bits,
            "application": self.application,
            "dropout-noise": self.dropout_noise,
            "protocol": self.protocol,
            **privacy,
            **self.riders.to_dict(),
        }
        return {PREFIX + name: value for name, value in values.items()}


def layout_text(layout: Layout) -> str:
    """A layout as it travels to the nodes."""
    return json.dumps(layout.to_dict(), separators=(",", ":"))


def read_layout(text: str) -> Layout:
    """The inverse of `layout_text`; allocates nothing of the size that the server claims.

    Raises:
        ValueError: it is not a layout.
    """
    like: dict[str, ArrayLike] = {}
    try:
        for item in json.loads(text):
            like[str(item["name"])] = np.broadcast_to(np.zeros((), dtype=str(item["dtype"])), tuple(item["shape"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a layout: {error!r}") from None
    return Layout.of(like)


def _privacy(values: Mapping[str, object]) -> PrivacyUnit:
    unit, adaptive = _text(values, "privacy", "client"), values.get("adaptive-clipping", False)
    if type(adaptive) is not bool:
        raise ValueError(f"secagg-adaptive-clipping must be true or false, got {adaptive!r}")
    if unit == "none":
        given = sorted(PREFIX + name for name in (*_BUDGET, "adaptive-clipping") if name in values)
        if given:
            raise ValueError(f'secagg-privacy = "none" takes none of {given}')
        return NoPrivacy(clip_norm=_number(values, "clip-norm"))
    if unit != "client":
        raise ValueError(f'secagg-privacy must be "client" or "none", got {unit!r}')
    clip_norm = _number(values, "clip-norm")
    return ClientLevel(
        clip_norm=AdaptiveClipping(initial=clip_norm) if adaptive else clip_norm,
        epsilon=_number(values, "epsilon"),
        delta=_number(values, "delta"),
        rounds=_integer(values, "rounds"),
    )


def _weights(values: Mapping[str, object]) -> Weights:
    text = _text(values, "public-weights", "")
    if not text:
        return PrivateWeights(largest=_number(values, "largest-weight")) if "largest-weight" in values else None
    if "largest-weight" in values:
        raise ValueError("weights are public or private: give secagg-public-weights or secagg-largest-weight")
    try:
        return {int(client): float(weight) for client, weight in (entry.split(":") for entry in text.split())}
    except ValueError:
        raise ValueError(f'secagg-public-weights must look like "1:120 2:80", got {text!r}') from None


def _metrics(text: str) -> dict[str, tuple[float, float]]:
    try:
        return {
            name: (float(least), float(largest))
            for name, least, largest in (entry.rsplit(":", 2) for entry in text.split())
        }
    except ValueError:
        raise ValueError(f'secagg-metrics must look like "loss:0:10 accuracy:0:1", got {text!r}') from None


def _number(values: Mapping[str, object], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{PREFIX}{name} must be a number, got {value!r}")
    return float(value)


def _integer(values: Mapping[str, object], name: str, default: int | None = None) -> int:
    value = values.get(name, default)
    if type(value) is not int:
        raise ValueError(f"{PREFIX}{name} must be a whole number, got {value!r}")
    return value


def _text(values: Mapping[str, object], name: str, default: str) -> str:
    value = values.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"{PREFIX}{name} must be a text, got {value!r}")
    return value

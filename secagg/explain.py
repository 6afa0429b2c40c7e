"""Why every derived number of a configuration is what it is: the text of `secagg plan`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dp import NoPrivacy, RecordLevel
from protocols.primitives.packing import NATIVE_BITS

from .riders import PrivateWeights

if TYPE_CHECKING:
    from .config import AggregationConfig

FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One derived number, its key for machines, and why it is what it is."""

    name: str
    value: object
    reason: str


def explain(config: AggregationConfig) -> list[Explanation]:
    """Every derived number with its reason, in reading order."""
    return [*_protocol(config), *_privacy(config), *_cost(config)]


def _protocol(config: AggregationConfig) -> list[Explanation]:
    complete = config.degree == config.clients - 1
    holders = config.degree + 1
    kind = "native" if config.modulus_bits in NATIVE_BITS else "packed"
    return [
        Explanation(
            name="degree",
            value=config.degree,
            reason="every client shares masks with every other one"
            if complete
            else "fewest neighbours that keep clients safe (2^-40 after 2^40 tries) and the round alive (2^-30)",
        ),
        Explanation(
            name="corrupt_holders",
            value=config.corrupt_holders,
            reason=f"of the {holders} holders of one client's secrets, as many are taken to be corrupt",
        ),
        Explanation(
            name="threshold",
            value=config.threshold,
            reason=f"smallest t with 2t > {holders} holders + {config.corrupt_holders} corrupt: "
            "a server that cheats never gets t answers to both secrets of a client"
            + ("" if complete else ", nor can it cut the ring into smaller sums"),
        ),
        Explanation(
            name="min_survivors",
            value=config.min_survivors,
            reason=f"{config.clients} clients - {config.max_dropouts} dropouts: clients refuse a sum over fewer",
        ),
        Explanation(
            name="modulus_bits",
            value=config.modulus_bits,
            reason=f"{kind} lanes; {config.needed_bits} bits would do for the largest sum"
            + (" with noise at 7.5 standard deviations: the signal never wraps" if config.mechanism else ""),
        ),
        Explanation(
            name="int_bound",
            value=config.encoder.int_bound,
            reason="integer L2 norm that a clipped unit is scaled to: "
            + (
                "the largest that keeps the budget"
                if config.mechanism
                else "as fine as the ring allows for all clients"
            ),
        ),
    ]


def _privacy(config: AggregationConfig) -> list[Explanation]:
    mechanism, privacy = config.mechanism, config.privacy
    if mechanism is None or isinstance(privacy, NoPrivacy):
        return [
            Explanation(
                name="epsilon",
                value=math.inf,
                reason="no noise: masking hides who sent what, nothing bounds what the sum reveals",
            )
        ]
    honest = config.min_survivors - config.max_colluders
    lines = [
        Explanation(
            name="share_stddev",
            value=math.sqrt(mechanism.share_variance),
            reason="standard deviation of each client's Skellam share, in integer steps",
        ),
        Explanation(
            name="noise_multiplier",
            value=mechanism.noise_multiplier,
            reason=f"noise of the {honest} certain shares (min_survivors - max_colluders), over int_bound",
        ),
    ]
    if isinstance(privacy, RecordLevel):
        lines.append(
            Explanation(
                name="denominator",
                value=privacy.denominator,
                reason="public: sampling_rate x records, times the share of clients that survive; "
                "a realised batch size would be a release of its own",
            )
        )
    rungs = config.ladder()
    if rungs is not None:
        reasons = {
            "all_honest": f"all {config.clients} clients contribute and nobody colludes",
            "after_dropout": f"{config.min_survivors} survive, nobody colludes",
            "minus_colluders": f"{config.min_survivors} survive, {config.max_colluders} of them collude",
            "guaranteed": "the budgeted claim: the worst round that clients accept",
            "local_only": "everybody but one client colludes",
        }
        lines += [
            Explanation(
                name=f"ladder.{name}", value=value, reason=f"epsilon after {privacy.rounds} rounds: {reasons[name]}"
            )
            for name, value in rungs.to_dict().items()
        ]
    riders = config.riders
    if riders.count:
        divisor = riders.least_divisor(config.denominator(config.min_survivors))
        noise = config.noise_stddev(config.min_survivors) / riders.unit(privacy.clip_norm) / divisor
        lines.append(
            Explanation(
                name="rider_noise",
                value=noise,
                reason=f"standard deviation of the noise on the mean of each of {riders.count} riders, "
                "over half its range"
                + (", if all weights are the largest" if isinstance(riders.weights, PrivateWeights) else ""),
            )
        )
    lines.append(
        Explanation(
            name="expected_relative_error",
            value=config.relative_error,
            reason=f"L2 norm of the noise in one released mean over clip_norm, at {config.min_survivors} survivors: "
            "noise x sqrt(dimension) / denominator",
        )
    )
    return lines


def _cost(config: AggregationConfig) -> list[Explanation]:
    floats = FLOAT32_BYTES * config.layout.length
    return [
        Explanation(
            name="upload_bytes",
            value=config.upload_bytes,
            reason=f"masked vector of one client: {config.upload_bytes / floats:.2f} x the {floats} bytes of float32",
        )
    ]

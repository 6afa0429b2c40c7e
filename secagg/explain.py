"""Why every derived number of a configuration is what it is: the text of `secagg plan`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dp import LocalRecordLevel, NoPrivacy, RecordLevel, local_epsilon, local_noise
from protocols.primitives.packing import NATIVE_BITS
from protocols.primitives.shamir import SHARE_BYTES

from .riders import PrivateWeights

if TYPE_CHECKING:
    from .config import AggregationConfig

FLOAT32_BYTES = 4
LAW_REASONS = {
    "skellam": "shares add up to the same law: dropouts and colluders change the variance and nothing else",
    "discrete_gaussian": "shares add up to nearly a discrete Gaussian; what the sum falls short of it is accounted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One derived number, its key for machines, and why it is what it is."""

    name: str
    value: object
    reason: str


def explain(config: AggregationConfig) -> list[Explanation]:
    """Every derived number with its reason, in reading order."""
    return [*_protocol(config), *_clipping(config), *_privacy(config), *_cost(config)]


def _protocol(config: AggregationConfig) -> list[Explanation]:
    complete = config.degree == config.clients - 1
    holders = config.degree + 1
    kind = "native" if config.modulus_bits in NATIVE_BITS else "packed"
    kept = config.encoder.first_clip(config.length) / config.encoder.clip_norm
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
            reason=f"{kind} lanes; {config.needed_bits} bits would do for "
            + (
                "a rotated sum, whose coordinates are all alike"
                if config.rotation
                else "the largest sum"
                + (" with noise at 7.5 standard deviations: the signal never wraps" if config.mechanism else "")
            ),
        ),
        Explanation(
            name="rotation",
            value=config.rotation,
            reason="updates are rotated at random before rounding, by a public seed of each round: "
            f"{config.modulus_bits} bits could not hold one coordinate with all the weight"
            if config.rotation
            else f"not needed: {config.modulus_bits} bits hold the sum even if one coordinate carries all the weight",
        ),
        Explanation(
            name="wrap_probability",
            value=config.wrap_probability,
            reason="bound for one coordinate in one round; a wrap costs accuracy, never privacy",
        ),
        Explanation(
            name="expected_wraps",
            value=config.expected_wraps,
            reason=f"bound on the coordinates of one round that wrap, of {config.length}",
        ),
        Explanation(
            name="int_bound",
            value=config.encoder.int_bound,
            reason="integer L2 norm that a clipped unit is scaled to: "
            + (
                "the largest that keeps the budget"
                if config.mechanism
                else "as fine as the ring allows for all clients"
            )
            + f"; rounding needs room, so units beyond {kept:.1%} of clip_norm are shortened to that",
        ),
    ]


def _clipping(config: AggregationConfig) -> list[Explanation]:
    adaptive = config.adaptive
    lines = [
        Explanation(
            name="clip_norm",
            value=config.clip_norm,
            reason="fixed L2 bound of one unit, in units of the update"
            if adaptive is None
            else f"of this round; it moves to where {adaptive.target_quantile:.0%} of updates are not clipped",
        )
    ]
    if adaptive is not None:
        lines += [
            Explanation(
                name="indicator",
                value=config.indicator,
                reason="share of int_bound given to the coordinate that says whether an update was clipped: "
                f"the update keeps {math.sqrt(1 - config.indicator**2):.1%}, and the norm of both is what noise covers",
            ),
            Explanation(
                name="count_stddev",
                value=config.count_stddev,
                reason=f"noise in the fraction of unclipped updates, of {config.clients} clients",
            ),
        ]
    return lines


def _privacy(config: AggregationConfig) -> list[Explanation]:
    mechanism, privacy = config.mechanism, config.privacy
    if isinstance(privacy, LocalRecordLevel):
        return _local(config, privacy)
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
        Explanation(name="noise_law", value=mechanism.law, reason=LAW_REASONS[mechanism.law]),
        Explanation(name="dropout_noise", value=config.dropout_noise, reason=_dropout_noise(config)),
        Explanation(
            name="share_stddev",
            value=math.sqrt(mechanism.share_variance),
            reason="standard deviation of each client's noise share, in integer steps",
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
        noise = config.noise_stddev(config.min_survivors) / riders.unit(config.clip_norm) / divisor
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


def _local(config: AggregationConfig, privacy: LocalRecordLevel) -> list[Explanation]:
    noise = local_noise(privacy, dimension=config.layout.length)
    return [
        Explanation(
            name="noise_multiplier",
            value=noise.noise_multiplier,
            reason="noise of one client's local step over record_clip_norm: all of it is its own, others add nothing",
        ),
        Explanation(
            name="denominator",
            value=privacy.sampling_rate * privacy.records,
            reason="public: sampling_rate x records of one client; a realised batch size would be a release of its own",
        ),
        Explanation(
            name="ladder.local_only",
            value=local_epsilon(privacy, dimension=config.layout.length, rounds=privacy.rounds),
            reason=f"epsilon of one client's records after {privacy.rounds} rounds of {privacy.local_steps} steps, "
            "with no trust in anyone",
        ),
    ]


def _dropout_noise(config: AggregationConfig) -> str:
    """What the choice costs: in noise, or in bytes and draws."""
    if not config.removable:
        return (
            f"every client adds its share of what {config.min_survivors} survivors need: if all {config.clients} stay, "
            f"the sum has {config.clients / config.min_survivors:.2f} x that variance"
        )
    shares, everybody = SHARE_BYTES * config.removable * config.degree, SHARE_BYTES * config.clients
    return (
        f"every accepted sum has the variance that {config.min_survivors} survivors need. It costs each client about "
        f"{shares + everybody} bytes and {config.removable + 1} noise vectors instead of 1, and the server up to "
        f"{config.removable * config.clients} noise vectors if nobody drops out"
    )


def _cost(config: AggregationConfig) -> list[Explanation]:
    floats = FLOAT32_BYTES * config.layout.length
    return [
        Explanation(
            name="upload_bytes",
            value=config.upload_bytes,
            reason=f"masked vector of one client: {config.upload_bytes / floats:.2f} x the {floats} bytes of float32",
        )
    ]

"""What a population costs before anybody computes: cohorts, seconds, bytes, noise, and the chance that it fails.

1. Seconds are CPU time of the protocol alone, predicted by slopes that were fitted to measured rounds (`costs.json`
   names them and the machine). Training, clipping and noise come on top, as does whatever carries the messages.
2. Bytes are those of the messages; the model that clients download is not among them.
3. The price of cohorts is said twice: the noise of their plain mean over that of one aggregation of everybody at the
   same epsilon, and the epsilon that one aggregation would have at the noise of the cohorts' mean.
4. A cohort fails if more than `max_dropouts` of its clients drop out, each with the given rate on its own, or if its
   graph falls apart; a round fails if more than `bad_cohorts` cohorts do. Clients that fall silent together (a network
   that breaks, a time zone that sleeps) fail more often than that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dp import LocalRecordLevel, NoPrivacy
from dp.accounting import DiscreteGaussianEvent, SkellamEvent, epsilon
from protocols.graph import CORRECTNESS

from .cohorts import MEDIAN_EFFICIENCY, tolerated_colluders
from .config import AggregationConfig
from .explain import Explanation
from .tails import log_any, log_binomial_tail

MEGABYTE = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What the cost of a round depends on."""

    clients: int
    degree: int
    dropouts: int  # after sharing keys, where they cost the server most
    vector_bytes: int
    suite: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCost:
    """A round, for each client and for the server; CPU seconds and bytes."""

    client_s: float
    server_s: float
    upload_bytes: float
    download_bytes: float


def client_terms(size: Size) -> dict[str, float]:
    """What a client does, as counts: bundles read, agreements and shares with neighbours, bytes sent, bytes masked."""
    megabytes = size.vector_bytes / MEGABYTE
    return {
        "bundle": size.clients,
        f"neighbour, suite {size.suite}": size.degree,
        "megabyte sent": megabytes,
        "megabyte masked": megabytes * (size.degree + 1),
    }


def server_terms(size: Size) -> dict[str, float]:
    """What the server does, as counts: clients, their pairs, names in lists, agreements of dropouts, bytes."""
    megabytes = size.vector_bytes / MEGABYTE
    survivors = size.clients - size.dropouts
    lost_pairs = size.dropouts * size.degree * survivors / size.clients
    return {
        f"client, suite {size.suite}": size.clients,
        f"pair, suite {size.suite}": size.clients * size.degree,
        f"pair of a dropout, suite {size.suite}": lost_pairs,
        "name in a list": size.clients**2,  # each client is told the whole cohort
        "megabyte received": megabytes * survivors,
        "megabyte unmasked": megabytes * (survivors + lost_pairs),
    }


def predict(size: Size, costs: Mapping[str, Any]) -> RoundCost:
    """The cost of a round of some size, by slopes such as those of `costs.json`."""

    def seconds(side: str, terms: Mapping[str, float]) -> float:
        return float(sum(costs["seconds"][side][name] * count for name, count in terms.items()))

    def size_of(direction: str) -> float:
        line = costs["bytes"][str(size.suite)][direction]
        return float(line["fixed"] + line["client"] * size.clients + line["neighbour"] * size.degree)

    return RoundCost(
        client_s=seconds("client", client_terms(size)),
        server_s=seconds("server", server_terms(size)),
        upload_bytes=size.vector_bytes + size_of("upload"),
        download_bytes=size_of("download"),
    )


@cache
def shipped_costs() -> dict[str, Any]:
    """The slopes that come with the library."""
    costs: dict[str, Any] = json.loads(Path(__file__).with_name("costs.json").read_text())
    return costs


def plan_population(
    config: AggregationConfig, *, population: int, dropout_rate: float, bad_cohorts: int = 0
) -> list[Explanation]:
    """What a round over many cohorts of one configuration costs.

    Args:
        config: what is agreed in each cohort.
        population: clients in a round; those that fill no whole cohort sit out.
        dropout_rate: chance that a client falls silent during a round, each on its own.
        bad_cohorts: how many cohorts may abort or lie.

    Returns:
        Lines named "population...", in reading order.

    Raises:
        ValueError: a number is out of its range; says which.
    """
    cohorts = population // config.clients
    if cohorts < 1:
        raise ValueError(f"a population of {population} fills no cohort of {config.clients}")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate must be from 0 up to 1, got {dropout_rate!r}")
    if not 0 <= 2 * bad_cohorts < cohorts:
        raise ValueError(f"bad_cohorts must be from 0 to {(cohorts - 1) // 2} for {cohorts} cohorts, got {bad_cohorts}")
    invited = cohorts * config.clients
    colluders = tolerated_colluders(invited, cohorts, max_colluders=config.max_colluders)
    facts: list[tuple[str, object, str]] = [
        ("clients", invited, f"{population - invited} of {population} sit out: cohorts have one size"),
        ("cohorts", cohorts, f"of {config.clients}, drawn anew for each round; {bad_cohorts} of them may abort or lie"),
        (
            "colluders", colluders,
            f"of all clients may help the server, so that no cohort has more than {config.max_colluders} of them",
        ),
        *_price(config, cohorts),
        *_failure(config, cohorts, dropout_rate, bad_cohorts),
        *_cost(config, cohorts, dropout_rate),
    ]  # fmt: skip
    return [Explanation(name=f"population.{name}", value=value, reason=reason) for name, value, reason in facts]


def _price(config: AggregationConfig, cohorts: int) -> list[tuple[str, object, str]]:
    mechanism, privacy = config.mechanism, config.privacy
    if mechanism is None or isinstance(privacy, NoPrivacy | LocalRecordLevel):
        return []
    price = math.sqrt(cohorts)
    match mechanism.event(survivors=config.min_survivors):
        case SkellamEvent() as event:
            alone = epsilon({replace(event, variance=event.variance * cohorts): privacy.rounds}, delta=privacy.delta)
        case DiscreteGaussianEvent() as event:
            quieter = replace(event, share_variance=event.share_variance * cohorts)
            alone = epsilon({quieter: privacy.rounds}, delta=privacy.delta)
        case event:
            raise ValueError(f"no price is known for {type(event).__name__}")
    return [
        ("noise_factor", price, "noise of the cohorts' plain mean over that of one aggregation at the same epsilon"),
        ("noise_factor_median", price * MEDIAN_EFFICIENCY, "at most this with a median or trimmed mean instead"),
        (
            "epsilon_alone", alone,
            "what one aggregation over everybody would cost at the noise of the cohorts' plain mean; "
            f"cohorts cost {privacy.epsilon:g}, since the server sees each of them",
        ),
    ]  # fmt: skip


def _failure(
    config: AggregationConfig, cohorts: int, dropout_rate: float, bad_cohorts: int
) -> list[tuple[str, object, str]]:
    complete = config.degree == config.clients - 1
    silent = log_binomial_tail(config.max_dropouts + 1, trials=config.clients, rate=dropout_rate)
    graph = 0.0 if complete else 2.0**-CORRECTNESS
    one = min(1.0, math.exp(silent) + graph)
    any_of_all = math.exp(log_any(cohorts, math.log(one))) if one > 0 else 0.0
    several = math.exp(log_binomial_tail(bad_cohorts + 1, trials=cohorts, rate=one))
    return [
        (
            "cohort_failure", one,
            f"chance that more than {config.max_dropouts} of {config.clients} clients drop out at a rate of "
            f"{dropout_rate:g} each" + ("" if complete else f", or that the graph falls apart (2^-{CORRECTNESS})"),
        ),
        (
            "round_failure", min(several, any_of_all),
            f"chance that more than {bad_cohorts} of {cohorts} cohorts fail",
        ),
    ]  # fmt: skip


def _cost(config: AggregationConfig, cohorts: int, dropout_rate: float) -> list[tuple[str, object, str]]:
    costs = shipped_costs()
    expected = min(config.max_dropouts, math.ceil(dropout_rate * config.clients))
    suite = config.round_config(round_id=bytes(32), model=bytes(32)).suite
    size = Size(
        clients=config.clients, degree=config.degree, dropouts=expected, vector_bytes=config.upload_bytes, suite=suite
    )  # fmt: skip
    one, everybody = predict(size, costs), cohorts * config.clients
    machine = ", ".join(sorted({machine["processor"] for machine in costs["machines"]}))
    measured = f"from rounds measured on {machine} (costs.json)"
    return [
        ("client.cpu_s", one.client_s, f"of the protocol for each client, one thread, {measured}"),
        ("client.upload_bytes", round(one.upload_bytes), "for each client: the masked vector, keys and shares"),
        ("client.download_bytes", round(one.download_bytes), "for each client, without the model"),
        (
            "server.cpu_s", cohorts * one.server_s,
            f"for all cohorts with {expected} dropouts in each; cohorts may run on as many machines",
        ),
        ("server.received_bytes", everybody * round(one.upload_bytes), "from all clients"),
        ("server.sent_bytes", everybody * round(one.download_bytes), "to all clients, without the model"),
    ]  # fmt: skip

"""What is hidden from whom: one text that a data-protection officer can sign, and the same as plain data.

It names the unit, the adjacency, delta, the sampling assumption, and one epsilon for each adversary. It also says what
is *not* hidden.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dp import LocalRecordLevel, NoPrivacy, RecordLevel, local_epsilon

from .riders import PrivateWeights

if TYPE_CHECKING:
    from .config import AggregationConfig


FLOAT_SUMS = 'rounding "sum": float sums over a batch err by no more than is set aside for it'
ROWS = "a record's gradient depends on no other record of its batch, to the last bit of its floats"


def rungs(config: AggregationConfig, *, survivors: int) -> dict[str, str]:
    """Whom each rung of the epsilon ladder is against."""
    helped = f"the server and {config.max_colluders} clients" if config.max_colluders else "the server"
    return {
        "all_honest": f"the server, all {config.clients} in the sum, no client helping",
        "after_dropout": f"the server, {survivors} in the sum, no client helping",
        "minus_colluders": f"{helped}, {survivors} in the sum",
        "guaranteed": f"{helped}, {config.min_survivors} in the sum (the budgeted claim)",
        "local_only": "the server and every other client"
        # One with another rate or more steps a round spends the same budget along another course.
        + (", for a client of the agreed unit" if isinstance(config.privacy, LocalRecordLevel) else ""),
    }


def statement_dict(
    config: AggregationConfig, *, survivors: int | None = None, rounds: int | None = None, spent: float | None = None
) -> dict[str, Any]:
    """The statement as plain data.

    Args:
        config: what was agreed.
        survivors: clients in the released sums; without it, the fewest that are accepted.
        rounds: releases that the ladder composes; without it, the planned rounds.
        spent: epsilon spent so far according to the ledger, if there is one.

    Returns:
        Plain types; epsilons may be `math.inf`.
    """
    survivors = config.min_survivors if survivors is None else survivors
    privacy = config.privacy
    hidden = [f"which client sent what: the server learns one sum over at least {config.min_survivors} clients"]
    exposed = ["the sum itself", "who took part and who dropped out", "sizes and times of messages", "the final model"]
    assumptions = [
        f"at most {config.max_colluders} of {config.clients} clients work with the server",
        "the roster of identities is genuine",
        "the clients' own devices are honest towards their owners",
    ]
    riding = [*(name for name, _, _ in config.riders.metrics)]
    if isinstance(config.riders.weights, PrivateWeights):
        riding.insert(0, "weights")
    elif config.riders.weights is not None:
        exposed.insert(1, "the public weight of every client")
    if config.adaptive is not None:
        riding.append("votes on whether the update was clipped")
    if riding:
        exposed.insert(1, f"sums of {', '.join(riding)}: they ride in the same vector, within the same epsilon")
    if config.clients == 2:
        exposed.insert(
            0, "from either of the two clients, nothing of the other's update: each can subtract its own from the sum"
        )
    if config.min_survivors - config.max_colluders < 2:
        hidden = [f"{hidden[0]}, and who sent what stays hidden while fewer clients than assumed help it"]
        exposed.insert(
            0, "from the server with its colluders, the one other client's update: it is the sum minus their own"
        )
    result: dict[str, Any] = {
        "unit": privacy.unit,
        "adjacency": privacy.adjacency,
        "clients": config.clients,
        "survivors": survivors,
        "hidden": hidden,
        "not_hidden": exposed,
        "assumptions": assumptions,
        "config_digest": config.digest().hex(),
    }
    if isinstance(privacy, LocalRecordLevel):
        return result | _local(config, privacy, hidden, assumptions, privacy.rounds if rounds is None else rounds)
    if isinstance(privacy, NoPrivacy) or config.mechanism is None:
        exposed.insert(
            0, "anything about one client that can be computed from the exact sum and knowledge of the others"
        )
        return result | {"epsilon": math.inf, "delta": None, "ladder": None, "spent": math.inf}
    rounds = privacy.rounds if rounds is None else rounds
    ladder = config.ladder(survivors=survivors, rounds=rounds)
    hidden.append(f"one {privacy.unit}'s contribution to the sum, up to the epsilon above")
    if isinstance(privacy, RecordLevel):
        assumptions.append(
            f"each client draws each of its records with the public rate {privacy.sampling_rate:g}, in secret"
        )
        assumptions += [ROWS, FLOAT_SUMS] if privacy.rounding == "sum" else [ROWS]
    else:
        assumptions.append("no amplification is claimed: the server knows who takes part")
    return result | {
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "rounds": rounds,
        "ladder": None if ladder is None else ladder.to_dict(),
        "spent": spent,
    }


def _local(
    config: AggregationConfig, privacy: LocalRecordLevel, hidden: list[str], assumptions: list[str], rounds: int
) -> dict[str, Any]:
    """What local noise adds: a claim that rests on nobody else, and is the same for every number of honest clients."""
    hidden.append(
        "one record of any client, up to the epsilon above, with no trust in anyone: also from all the others"
    )
    hidden.append("masking adds confidentiality only: it makes that epsilon no smaller")
    hidden.append("a client whose rate, records or steps are its own may spend that epsilon earlier, and never more")
    assumptions[:] = [
        *([ROWS, FLOAT_SUMS] if privacy.rounding == "sum" else [ROWS]),
        "for the epsilon above nothing but the client itself: it draws its records in secret, at its public rate "
        f"({privacy.sampling_rate:g} if it is the agreed one), and adds its own noise at every local step",
        *(f"for confidentiality only: {text}" for text in assumptions),
    ]
    epsilon = local_epsilon(privacy, dimension=config.layout.length, rounds=rounds)
    return {
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "rounds": rounds,
        "ladder": {"local_only": epsilon},
        "spent": None,
    }


def statement(
    config: AggregationConfig, *, survivors: int | None = None, rounds: int | None = None, spent: float | None = None
) -> str:
    """The statement as text; arguments as for `statement_dict`."""
    privacy = config.privacy
    facts = statement_dict(config, survivors=survivors, rounds=rounds, spent=spent)
    lines = [
        "Privacy statement",
        f"  unit        {facts['unit']}: {facts['adjacency']}",
        f"  clients     {facts['clients']} invited, {facts['survivors']} in the sum, at least {config.min_survivors}",
    ]
    if isinstance(privacy, NoPrivacy):
        lines.append("  epsilon     infinite: no noise was added")
    else:
        lines.append(
            f"  budget      epsilon {facts['epsilon']:g} at delta {facts['delta']:g} over {privacy.rounds} rounds"
        )
        if facts["spent"] is not None:
            lines.append(f"  spent       epsilon {facts['spent']:.3f} so far")
        lines.append(f"  epsilon after {facts['rounds']} round{'s' if facts['rounds'] != 1 else ''} like this, against")
        against = rungs(config, survivors=facts["survivors"])
        width = max(len(text) for text in against.values())
        lines += [f"    {against[name]:<{width}}  {value:8.3f}" for name, value in facts["ladder"].items()]
    for title, key in (("Hidden", "hidden"), ("Not hidden", "not_hidden"), ("Assumed", "assumptions")):
        lines += [f"  {title}", *(f"    - {line}" for line in facts[key])]
    return "\n".join(lines)

"""Secrets that a client gives up once it is known how many clients survived, and no more of them than that.

A client may add something to its vector that must be taken out again unless other clients drop out: the part of its
noise that only makes up for dropouts. Each such *component* k = 1 ... T follows from a seed. The server gets the seeds
of the components k > n - |survivors| of every survivor, and subtracts what follows from them.

Rules:

1. Seeds come from a chain: r_1 is random, r_{k+1} is derived from r_k, and the seed of component k from r_k. Whoever
   has r_k knows all later seeds and no earlier one.
2. Each r_k is shared among the holders like the other secrets, and sealed with them. The end of the chain, r_{T+1}, is
   public: a link that is reconstructed is checked by walking to it.
3. No message names an index. Each holder computes it from the survivor set that it verified t signatures on, and says
   its share of that one link, with its answer, once. With 2 t > holders + corrupt, no two links of one client are ever
   answered t times.
4. The shares of a survivor that dies before it answers are with its holders. Of a dropout no link is ever needed.

Source: Jiang, Wang, Chen, "Efficient Federated Learning with Dropout-Resilient Differential Privacy" (XNoise), EuroSys
2024. There a client sends seeds itself and shares stand in for it; the chain is ours, and saves that trip.
"""

from __future__ import annotations

from ..errors import ClientId
from .rules import Rules


def links(rules: Rules, client: ClientId, first: bytes, *, start: int = 1) -> list[bytes]:
    """r_start ... r_{T+1} of a client, from r_start.

    Args:
        rules: the round, with its keys bound.
        client: whose chain it is.
        first: r_start.
        start: from 1 to T + 1.
    """
    chain = [first]
    for _ in range(start, rules.config.removable + 1):
        chain.append(rules.next_link(client, chain[-1]))
    return chain


def seeds(rules: Rules, client: ClientId, chain: list[bytes]) -> tuple[bytes, ...]:
    """The 32-byte seeds that follow from `links`: one for each but the last."""
    return tuple(rules.removable_seed(client, link) for link in chain[:-1])

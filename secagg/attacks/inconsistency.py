"""Model inconsistency: one client gets the real model, all others a dead one, and the sum is the victim's.

Rules:

1. Dead ReLU units have a zero gradient. If everybody but the victim trains a dead model, the sum over the layers in
   front of them *is* the victim's gradient, whatever masks it travelled under.
2. It needs different models for different clients of one round. Clients that bind the model into the round
   (`Client.begin(..., model=...)`) derive their keys from it: the keys of two models do not fit each other.
3. `send_two_models` is the strongest such server we know: it names to each client the model that it sent to it, and
   gives every message the context that its receiver expects. Bound clients then cannot open each other's shares, and
   the round ends before any masked vector has left.

Source: Pasquini, Francati and Ateniese 2022 ("Eluding Secure Aggregation in Federated Learning via Model
Inconsistency", arXiv 2111.07380).

Example, against clients that do not bind the model (they never pass it to `begin`)::

    dead = dead_copy(model)
    seen = observe(lambda client: update_of(client, model if client == victim else dead), config)
    found = invert_linear(seen.server, LinearKnowledge(units=200, inputs=784, images=1), rand=os.urandom)
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from protocols import ClientId, Event, Identity, ProtocolError, Roster, SendMessage
from protocols.pairwise import round_context
from protocols.pairwise.rules import Rules
from protocols.session import DIGEST_BYTES
from protocols.wire import (
    SERVER,
    AdvertiseKeys,
    Invitation,
    KeyBundles,
    Message,
    SealedShares,
    ShareKeys,
    decode,
    decode_signed,
    encode,
    message_limit,
)

from ..client import Client
from ..config import AggregationConfig
from ..history import MemoryHistory
from ..layout import Arrays

try:
    import torch
    from torch import nn
except ImportError as missing:
    raise ImportError("the red team needs PyTorch: pip install 'secagg[torch]'") from missing

_DEAD_BIAS = -1e6


def dead_copy(model: nn.Module) -> nn.Module:
    """A copy whose units are all silent: the biases of its linear layers and convolutions, the last one's apart.

    Raises:
        ValueError: no layer before the last has a bias.
    """
    dead = copy.deepcopy(model)
    layers = [layer for layer in dead.modules() if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)]
    biases = [layer.bias for layer in layers[:-1] if layer.bias is not None]
    if not biases:
        raise ValueError("no layer before the last has a bias that could silence it")
    with torch.no_grad():
        for bias in biases:
            bias.fill_(_DEAD_BIAS)
    return dead


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How far a server got that sent different models to different clients.

    Attributes:
        refusals: what each client answered at last, where it was an error.
        masked_vectors: how many clients got so far that they would send a masked vector.
    """

    refusals: Mapping[int, ProtocolError]
    masked_vectors: int

    @property
    def aborted(self) -> bool:
        """Whether no client was ready to send anything about its data."""
        return self.masked_vectors == 0


def send_two_models(
    models: Mapping[int, Arrays],
    config: AggregationConfig,
    *,
    inspect: Callable[[Arrays], None] | None = None,
) -> Attempt:
    """Runs real clients, each bound to the model it was sent, up to where they would send their masked vectors.

    Args:
        models: the arrays that each client gets, for all clients 1 to n.
        config: what all parties agree on; the complete graph, so at most 100 clients.
        inspect: what clients look at a model with (`Client`).

    Raises:
        ValueError: the models are not for as many clients as the configuration says, or the graph is not complete.
    """
    if len(models) != config.clients or config.degree != config.clients - 1:
        raise ValueError(f"{len(models)} models for {config.clients} clients of degree {config.degree}")
    identities = {ClientId(client): Identity.generate() for client in sorted(models)}
    roster = Roster({client: identity.public for client, identity in identities.items()})
    round_id, limit = os.urandom(DIGEST_BYTES), message_limit(config.clients)
    rules = {
        client: Rules(config.round_config(round_id=round_id, model=config.layout.model_digest(models[client])), roster)
        for client in identities
    }
    clients = {
        client: Client(config, client, identity=identity, roster=roster, history=MemoryHistory(), inspect=inspect)
        for client, identity in identities.items()
    }
    refusals: dict[int, ProtocolError] = {}

    def ask(
        message: Callable[[ClientId], Message], call: Callable[[ClientId, bytes], list[Event]]
    ) -> dict[ClientId, list[Event]]:
        """Everybody's answer to a message in the context that each expects."""
        answers = {}
        for client in clients:
            if client not in refusals:
                try:
                    answers[client] = call(client, encode(message(client)))
                except ProtocolError as error:
                    refusals[client] = error
        return answers

    def frames(answers: Mapping[ClientId, list[Event]]) -> dict[ClientId, bytes]:
        return {
            client: event.data
            for client, events in answers.items()
            for event in events
            if isinstance(event, SendMessage)
        }

    def invitation(client: ClientId) -> Message:
        own = rules[client].config
        return Invitation(context=round_context(own, roster), sender=SERVER, round_id=round_id, model=own.model)

    try:
        advertised = frames(ask(invitation, lambda client, data: clients[client].begin(data, model=models[client])))
        bundles = tuple(decode(advertised[client], AdvertiseKeys, limit=limit).bundle for client in sorted(advertised))

        def key_bundles(client: ClientId) -> Message:
            message = KeyBundles(context=rules[client].context, sender=SERVER, bundles=bundles)
            rules[client].bind(bundles)
            return message

        shared = frames(ask(key_bundles, lambda client, data: clients[client].receive(data)))
        sealed = {
            sender: dict(
                zip(
                    (peer for peer in sorted(advertised) if peer != sender),
                    decode_signed(data, ShareKeys, limit=limit).message.sealed,
                    strict=True,
                )
            )
            for sender, data in shared.items()
        }

        def sealed_shares(client: ClientId) -> Message:
            return SealedShares(
                context=rules[client].context,
                sender=SERVER,
                cohort=tuple(sorted(sealed)),
                sealed=tuple(sealed[peer][client] for peer in sorted(sealed) if peer != client),
            )

        ready = ask(sealed_shares, lambda client, data: clients[client].receive(data))
    finally:
        for client in clients.values():
            client.abandon()
    return Attempt(refusals=refusals, masked_vectors=len(ready))

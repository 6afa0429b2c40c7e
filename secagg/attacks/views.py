"""What each adversary saw of a real round: the left side of every attack.

Rules:

1. `observe` runs real clients, a real server, real masks and real noise (`secagg.Simulation`) and only listens. No view
   is ever computed from updates that its adversary could not see.
2. A view holds one flat vector, the adversary's best statement about updates, in units of the update: a sum over
   `clients` updates plus noise of a known size (`noise_stddev`). Attacks read views through `flat`.
3. Who is not served by this library, say a Flower user, passes what was received instead: one array, a list of arrays,
   or named arrays, in the order of the model's parameters.

| view | adversary | what it knows |
|---|---|---|
| `PlainView` | a server without masking | one client's update, as sent |
| `NetworkView` | whoever reads the wire, the server included | every message; `masked(client)` is a masked vector |
| `ServerView` | the server after an honest round | the messages and the exact (or noised) sum |
| `SybilView` | a server that owns clients | the sum without what its own clients put in |
| `ColluderView` | clients without the server | the published mean without what they put in |
| `FinalModelView` | any user of the model | the parameters, nothing else |

Example:
    >>> import numpy as np, secagg
    >>> updates = {i: {"w": np.full(3, 0.1 * i)} for i in range(1, 5)}
    >>> config = secagg.AggregationConfig.cross_silo(
    ...     like=updates[1], clients=4, max_dropouts=1, max_colluders=0, privacy=secagg.NoPrivacy(clip_norm=1.0)
    ... )
    >>> seen = observe(updates, config, colluders={2, 3, 4})
    >>> flat(seen.server).round(4).tolist(), flat(seen.sybils).round(4).tolist()
    ([1.0, 1.0, 1.0], [0.1, 0.1, 0.1])
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dp import FloatVector, UInt32Vector
from protocols import ClientId, Phase
from protocols.primitives.keys import SIGNATURE_BYTES
from protocols.primitives.packing import unpack, word_dtype

from ..config import AggregationConfig
from ..layout import Arrays
from ..pipeline import Update, lift
from ..simulation import DropPlan, ObservedClient, Simulation, UpdateSource

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlainView:
    """One client's update as a server without masking receives it.

    Attributes:
        vector: float64[p].
        noise_stddev: of the noise that the client added itself, per coordinate.
    """

    vector: FloatVector
    noise_stddev: float = 0.0
    clients: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetworkView:
    """Every message of a round that reached the server: sender, the server's phase, bytes."""

    messages: tuple[tuple[int, Phase, bytes], ...]
    config: AggregationConfig
    seed: bytes = b""  # of the round's rotation, which is public

    def masked(self, client: int) -> FloatVector:
        """The masked vector of a client, decoded as if it were not masked: float64[p].

        Raises:
            ValueError: no masked vector of this client was seen.
        """
        for sender, phase, data in self.messages:
            if sender == client and phase is Phase.MASKED_INPUT:
                size = self.config.upload_bytes
                tail = data[-SIGNATURE_BYTES - size : -SIGNATURE_BYTES]
                bits = self.config.modulus_bits
                words = unpack(np.frombuffer(tail, word_dtype(bits)), self.config.length, bits)
                return _decoded(words, self.config, seed=self.seed)
        raise ValueError(f"no masked vector of client {client} was seen")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServerView:
    """What the server has after an honest round.

    Attributes:
        vector: float64[p], the sum of the survivors' clipped updates, noise included.
        survivors: whose updates are in it.
        network: every message.
        model: the arrays that the server sent out.
        config: what was agreed.
    """

    vector: FloatVector
    survivors: frozenset[ClientId]
    network: NetworkView
    model: Arrays | None
    config: AggregationConfig

    @property
    def clients(self) -> int:
        """How many updates are in the sum."""
        return len(self.survivors)

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise per coordinate; the configuration makes it public."""
        return self.config.noise_stddev(self.clients)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SybilView:
    """The sum without the contributions, noise included, of the server's own clients.

    Attributes:
        vector: float64[p], the sum over the honest survivors.
        clients: how many honest updates are in it.
        noise_stddev: of the honest clients' noise, per coordinate: less than the server's view has.
    """

    vector: FloatVector
    clients: int
    noise_stddev: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColluderView:
    """What clients get without the server: the published mean, less their own contributions. As `SybilView`."""

    vector: FloatVector
    clients: int
    noise_stddev: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FinalModelView:
    """The published model, as every user of it has it."""

    model: nn.Module


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundViews:
    """One round as its adversaries saw it; `sybils` and `colluders` differ from `server` only if there were any."""

    network: NetworkView
    server: ServerView
    sybils: SybilView
    colluders: ColluderView


SumView = PlainView | ServerView | SybilView | ColluderView
Observed = SumView | FloatVector | Sequence[NDArray[np.floating]] | Arrays


def flat(view: Observed) -> FloatVector:
    """A view's vector; or an update, given as one array, a list of arrays or named arrays, as one float64[p].

    Raises:
        ValueError: the view is empty.
    """
    if isinstance(view, PlainView | ServerView | SybilView | ColluderView):
        return view.vector
    arrays = list(view.values()) if isinstance(view, Mapping) else view
    if isinstance(arrays, np.ndarray):
        return np.asarray(arrays, dtype=np.float64)
    if not arrays:
        raise ValueError("the view holds no arrays")
    return np.concatenate([np.asarray(array, dtype=np.float64).ravel() for array in arrays])


class _TellingClient(ObservedClient):
    """A client that remembers what it put into the last sum, and would tell its friends."""

    contribution: UInt32Vector | None = None

    def prepare(self, update: Update) -> UInt32Vector:
        """As its parent does, and remembers the result."""
        self.contribution = prepared = super().prepare(update)
        return prepared


class Parties(Simulation):
    """Real parties over many rounds, any of whose clients may turn out to work with the adversary."""

    client_type = _TellingClient

    def contribution(self, client: int) -> UInt32Vector:
        """What a client put into its last sum, noise included, before masking: known to that client alone.

        Raises:
            ValueError: the client has not contributed.
        """
        party = self._clients.get(ClientId(client))
        if not isinstance(party, _TellingClient) or party.contribution is None:
            raise ValueError(f"client {client} has not contributed")
        return party.contribution


def observe(
    updates: UpdateSource,
    config: AggregationConfig,
    *,
    model: Arrays | None = None,
    drop: DropPlan = (),
    colluders: Collection[int] = (),
    simulation: Parties | None = None,
) -> RoundViews:
    """One real round, with an ear on the wire.

    Args:
        updates: for each client its update, or a function that computes it.
        config: what all parties agree on.
        model: the arrays that all updates start from.
        drop: who falls silent.
        colluders: clients that work with the adversary; they follow the protocol and tell what they contributed.
        simulation: parties to go on with, for attacks over several rounds; a fresh set for clients 1 to n if None.

    Raises:
        Everything that `Simulation.round` raises: a refused round gives no view.
    """
    parties = Parties(config, clients=range(1, config.clients + 1)) if simulation is None else simulation
    heard: list[tuple[int, Phase, bytes]] = []
    result = parties.round(
        updates, drop=drop, model=model, tap=lambda client, phase, data: heard.append((client, phase, data))
    )
    seed, length = parties.seed, config.layout.length
    network = NetworkView(messages=tuple(heard), config=config, seed=seed)
    total = config.encoder.decode(result.total, denominator=1.0, rotation=config.rotation_of(seed))[:length]
    server = ServerView(vector=total, survivors=result.survivors, network=network, model=model, config=config)

    own = sorted(result.survivors & {ClientId(client) for client in colluders})
    honest = len(result.survivors) - len(own)
    stddev = config.noise_stddev(honest)
    known = sum((_decoded(parties.contribution(client), config, seed=seed) for client in own), np.zeros_like(total))
    mean = np.concatenate([array.ravel().astype(np.float64) for array in result.mean.values()])
    published = mean * config.denominator(len(result.survivors))
    return RoundViews(
        network=network,
        server=server,
        sybils=SybilView(vector=total - known, clients=honest, noise_stddev=stddev),
        colluders=ColluderView(vector=published - known, clients=honest, noise_stddev=stddev),
    )


def _decoded(words: UInt32Vector, config: AggregationConfig, *, seed: bytes) -> FloatVector:
    """The ring words of one contribution, in units of the update."""
    integers = lift(words, config, survivors=1)
    decoded = config.encoder.decode(integers, denominator=1.0, rotation=config.rotation_of(seed))
    return decoded[: config.layout.length]

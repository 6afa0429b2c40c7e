"""Messages that would cost more than they weigh: announced, nested or just long. They are refused before they cost."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from protocols import ClientId, MalformedMessageError, Phase
from protocols.primitives.keys import HYBRID
from protocols.wire import MAGIC, VERSION, message_limit
from tests.rounds import KINDS, Round, random_vectors, round_config

from .hostile import assert_refused, ids, small_round

VICTIM = ClientId(1)
HEADER = MAGIC + bytes((VERSION, HYBRID.number))
MOST_BYTES = 50_000  # what a refusal may allocate: names, numbers and a traceback
TAGS = {kind.__name__: int(str(tag)) for tag, kind in KINDS.items()}
CONTEXT = b"\xc4\x20" + bytes(32)

# What follows the header, given the tag of a kind: each announces, nests or counts far more than there is.
FLOODS: dict[str, Callable[[int], bytes]] = {
    "an array of 2^32 - 1": lambda tag: b"\xdd\xff\xff\xff\xff" + bytes((tag,)),
    "an array of 2^31 clients": lambda tag: bytes((0x94, tag)) + CONTEXT + b"\x00\xdd\x80\x00\x00\x00\x01",
    "bytes of 4 GiB": lambda tag: bytes((0x94, tag)) + b"\xc6\xff\xff\xff\xff" + bytes(32),
    "a text of 4 GiB": lambda tag: bytes((0x94, tag)) + b"\xdb\xff\xff\xff\xff" + bytes(32),
    "a map of 2^32 - 1": lambda tag: bytes((0x94, tag)) + CONTEXT + b"\x00\xdf\xff\xff\xff\xff",
    "an extension of 4 GiB": lambda tag: bytes((0x94, tag)) + b"\xc9\xff\xff\xff\xff\x01",
    "arrays in arrays": lambda tag: bytes((0x94, tag)) + CONTEXT + b"\x00" + b"\x91" * 3000,
    "a client of 64 bits": lambda tag: bytes((0x94, tag)) + CONTEXT + b"\x00\x91\xcf" + b"\xff" * 8,
    "a sender of 64 bits": lambda tag: bytes((0x94, tag)) + CONTEXT + b"\xcf" + b"\xff" * 8 + b"\x90",
}
CLIENT_WAITS = (Phase.ADVERTISE_KEYS, Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.CONSISTENCY_CHECK)
SERVER_WAITS = (*CLIENT_WAITS, Phase.UNMASK)
AWAITED = dict(
    zip(SERVER_WAITS, ("AdvertiseKeys", "ShareKeys", "MaskedInput", "ConsistencyCheck", "Unmask"), strict=True)
)
SENT = dict(zip(CLIENT_WAITS, ("KeyBundles", "SealedShares", "SurvivorList", "SurvivorSignatures"), strict=True))


def cost(action: Callable[[], None]) -> int:
    """The most memory that an action holds at a time, beside what was there before."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        action()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before


def waiting(phase: Phase) -> Round:
    """A round whose clients wait for the message that the server sends when it closes `phase`."""
    game = small_round()
    game.network = lambda _sender, receiver, data: [] if receiver == VICTIM and game.server.phase is after else [data]
    after = SERVER_WAITS[SERVER_WAITS.index(phase) + 1]
    game.advance(after)
    return game


@pytest.mark.parametrize("phase", CLIENT_WAITS)
class TestClient:
    @pytest.mark.parametrize("flood", FLOODS)
    def test_refuses_at_once_and_allocates_nothing(self, phase: Phase, flood: str) -> None:
        game = waiting(phase)
        frame = HEADER + FLOODS[flood](TAGS[SENT[phase]])
        assert cost(lambda: game.to_client(VICTIM, frame)) < MOST_BYTES
        assert_refused(game, MalformedMessageError, by=[VICTIM])

    def test_does_not_read_what_is_too_long(self, phase: Phase) -> None:
        """The longest honest message of a round of four has a few thousand bytes for each; this has millions."""
        game = waiting(phase)
        limit = message_limit(4, HYBRID)
        frame = HEADER + b"\x94" + bytes((TAGS[SENT[phase]],)) + bytes(8_000_000)
        assert len(frame) > 100 * limit
        assert cost(lambda: game.to_client(VICTIM, frame)) < MOST_BYTES
        assert_refused(game, MalformedMessageError, by=[VICTIM], match="at most")


@pytest.mark.parametrize("phase", SERVER_WAITS)
class TestServer:
    def test_rejects_at_once_and_goes_on(self, phase: Phase) -> None:
        """Every flood costs its sender a rejection; the good message that follows counts, and the sum is exact."""
        game = small_round()
        floods = [HEADER + flood(TAGS[AWAITED[phase]]) for flood in FLOODS.values()]
        floods += [b"", HEADER, HEADER + bytes(8_000_000), bytes(100)]
        costs: list[int] = []

        def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
            if sender == VICTIM and game.server.phase is phase:
                costs.extend(cost(lambda one=one: game.to_server(VICTIM, one)) for one in floods)  # type: ignore[misc]
            return [data]

        game.network = network
        result = game.run()
        assert len(costs) == len(floods)
        assert max(costs) < MOST_BYTES
        assert [rejected.client for rejected in game.rejected] == [VICTIM] * len(floods)
        assert result.survivors == set(ids(1, 2, 3, 4))
        assert (result.vector == game.expected(result.survivors)).all()


def test_a_vector_of_another_length_is_not_read() -> None:
    """Its length follows from the configuration: one word more or less is a rejection, whatever it says."""
    game = small_round()
    sizes: list[int] = []

    def network(sender: ClientId | None, _receiver: ClientId | None, data: bytes) -> list[bytes]:
        if sender == VICTIM and game.server.phase is Phase.MASKED_INPUT:
            sizes.append(len(data))
            return [data[:-4], data + bytes(4), data[:-64] + bytes(4_000_000) + data[-64:], data]
        return [data]

    game.network = network
    assert game.run().survivors == set(ids(1, 2, 3, 4))
    assert len(game.rejected) == 3 * len(sizes) == 3


def test_more_clients_than_a_field_has_places_are_no_configuration() -> None:
    with pytest.raises(ValueError, match="cohort must be from 2 to 65520"):
        Round(round_config(2**31), random_vectors(4, 5))

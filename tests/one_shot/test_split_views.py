"""Split views: with 3t > 2m + c a server learns one sum, whatever sets it shows to whom; with less, two."""

from __future__ import annotations

from itertools import product

import msgspec
import numpy as np
import pytest

from protocols import ClientId, Phase, ProtocolError
from protocols.one_shot.rules import WORD, least_threshold
from protocols.one_shot.wire import PartialSum, SealedContribution, UnmaskRequest
from protocols.primitives import key_shares, ring_mask
from tests.classical import decode, decode_signed, encode

from .game import NO_LIMIT, Game, random_vectors, round_config

PRIME = 65521
VICTIM = ClientId(1)


def rank(rows: list[list[int]]) -> int:
    """Over F_65521, by plain elimination."""
    rows = [row[:] for row in rows]
    found = 0
    for column in range(len(rows[0])):
        pivot = next((i for i in range(found, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        inverse = pow(rows[found][column], -1, PRIME)
        rows[found] = [value * inverse % PRIME for value in rows[found]]
        for i, row in enumerate(rows):
            if i != found and row[column]:
                rows[i] = [(a - row[column] * b) % PRIME for a, b in zip(row, rows[found], strict=True)]
        found += 1
    return found


def key_is_exposed(members: int, threshold: int, corrupt: int, first_view: int) -> bool:
    """Whether the victim's key is a combination of what the server sees.

    Unknowns are the coefficients of the victim's polynomial f and of the sum g of the others'. Corrupt members show
    f(x) and g(x); `first_view` honest members show f(x) + g(x), the others, asked without the victim, g(x).
    """

    def row(x: int, in_f: bool, in_g: bool) -> list[int]:
        powers = [pow(x, i, PRIME) for i in range(threshold)]
        return [value * in_f for value in powers] + [value * in_g for value in powers]

    seen = [row(x, *which) for x in range(1, corrupt + 1) for which in ((True, False), (False, True))]
    seen += [row(x, x <= corrupt + first_view, True) for x in range(corrupt + 1, members + 1)]
    target = [1] + [0] * (2 * threshold - 1)
    return rank([*seen, target]) == rank(seen)


VIEWS = ((1, 0), (0, 1), (1, 1))  # the sets that an honest member may be shown: I, J, or both


def more_than_one_sum(threshold: int, corrupt: int, views: tuple[tuple[int, int], ...]) -> bool:
    """Whether the server can combine what it sees into anything about the keys of I and J but one of three sums.

    Unknowns are the coefficients of the polynomials f of I and g of J. Corrupt members show both, an honest one the sum
    over the set that it was shown. Allowed is f(0), or g(0), or f(0) + g(0), and nothing beside it.
    """

    def row(x: int, in_f: int, in_g: int) -> list[int]:
        powers = [pow(x, i, PRIME) for i in range(threshold)]
        return [value * in_f for value in powers] + [value * in_g for value in powers]

    seen = [row(x, *which) for x in range(1, corrupt + 1) for which in ((1, 0), (0, 1))]
    seen += [row(corrupt + 1 + i, *view) for i, view in enumerate(views)]
    targets = [row(0, *which) for which in VIEWS]
    known = rank(seen)
    learnt = known + 2 - rank([*seen, *targets])
    allowed = any(rank([*seen, target]) == known for target in targets)
    return learnt == 2 or (learnt == 1 and not allowed)


def told(threshold: int, corrupt: int, views: tuple[tuple[int, int], ...], proofs: str) -> int:
    """How many independent things about the keys' polynomials f and g alone the server learns.

    Now clients also share blinding polynomials r, s: corrupt members show all shares of all of them. Dealers publish
    rho f + r and sigma g + s, whatever the views. The alternative is that each honest member answers a challenge that
    depends on the view that it was shown. A complaint is a word, and adds no row.
    """

    def row(x: int, *weights: int) -> list[int]:
        return [weight * pow(x, i, PRIME) % PRIME for weight in weights for i in range(threshold)]

    seen = [
        row(x, *(int(i == which) for i in range(4))) for x in range(1, corrupt + 1) for which in range(4)
    ]  # f, g, r, s
    for x, (in_f, in_g) in enumerate(views, corrupt + 1):
        seen.append(row(x, in_f, in_g, 0, 0))
        if proofs == "answers to views":
            rho = 11 + x % 2  # every other member is shown a third client too, so its challenge is another one
            seen += [row(x, in_f * rho, 0, in_f, 0), row(x, 0, in_g * rho, 0, in_g)]
    if proofs == "of dealers":
        for i in range(threshold):
            for f, g, r, s in ((77, 0, 1, 0), (0, 88, 0, 1)):
                seen.append([weight * (k == i) for weight in (f, g, r, s) for k in range(threshold)])
    return rank(seen) - rank([one[2 * threshold :] for one in seen])


class TestProofs:
    """What is public for the sake of blame tells nothing about keys, in whatever views."""

    @pytest.mark.parametrize(("members", "corrupt"), [(4, 0), (4, 1), (5, 1), (5, 2), (6, 2), (7, 3)])
    def test_dealers_proofs_add_nothing(self, members: int, corrupt: int) -> None:
        least = least_threshold(members=members, corrupt=corrupt)
        for threshold in (least, least - 1):
            for views in product(VIEWS, repeat=members - corrupt):
                without = told(threshold, corrupt, views, "none")
                assert told(threshold, corrupt, views, "of dealers") == without

    def test_answers_to_a_challenge_that_depends_on_the_view_would_add_something(self) -> None:
        """About one client's shares alone: why the challenge follows from what the client said, and nothing else."""
        both = ((1, 1),) * 4
        assert told(3, 0, both, "none") == 3  # the polynomial of the sum
        assert told(3, 0, both, "answers to views") > 3


class TestAlgebra:
    @pytest.mark.parametrize("members", range(3, 9))
    def test_the_bound_is_exact(self, members: int) -> None:
        for corrupt in range(members):
            for threshold in range(corrupt + 1, members + 1):
                splits = range(members - corrupt + 1)
                exposed = any(key_is_exposed(members, threshold, corrupt, split) for split in splits)
                assert exposed == (2 * threshold <= members + corrupt), (members, threshold, corrupt)

    @pytest.mark.parametrize(("members", "corrupt", "threshold"), [(16, 5, 13), (24, 13, 21), (7, 2, 6), (5, 2, 5)])
    def test_committees(self, members: int, corrupt: int, threshold: int) -> None:
        assert threshold == least_threshold(members=members, corrupt=corrupt)
        assert not any(key_is_exposed(members, threshold, corrupt, split) for split in range(members - corrupt + 1))

    @pytest.mark.parametrize(
        ("members", "corrupt"), [(4, 0), (4, 1), (5, 0), (5, 1), (5, 2), (6, 0), (6, 1), (6, 2), (7, 1), (7, 2)]
    )
    def test_three_views_give_one_sum_from_the_threshold_on_and_more_below(self, members: int, corrupt: int) -> None:
        least = least_threshold(members=members, corrupt=corrupt)
        shown = list(product(VIEWS, repeat=members - corrupt))
        assert not any(more_than_one_sum(least, corrupt, views) for views in shown)
        assert any(more_than_one_sum(least - 1, corrupt, views) for views in shown)


def fork(game: Game, corrupt: int, first_view: tuple[bool, ...]) -> list[dict[int, key_shares.Share]]:
    """What a server gets for both views: with the victim, without it. Returns shares by slot for each."""
    game.advance(Phase.MASKED_INPUT)
    requests = {
        event.to: decode(event.data, UnmaskRequest, limit=NO_LIMIT)  # type: ignore[union-attr]
        for event in game.server.close_phase()
    }
    answers: list[dict[int, key_shares.Share]] = [{}, {}]
    for slot, member in enumerate(game.config.committee):
        request, session = requests[member], game.members[member]
        views = [request.contributions, request.contributions[1:]]
        if slot < corrupt:
            session._rules.bind(request.bundles)
            for view, listed in enumerate(views):
                shares, problems = session._open_all(listed)
                assert not problems
                answers[view][slot] = key_shares.decode_sum(key_shares.add(shares))
            continue
        first = 0 if first_view[slot - corrupt] else 1
        for view in (first, 1 - first):
            answer = honest_answer(game, member, request, views[view])
            if answer is not None:
                answers[view][slot] = answer
    return answers


def honest_answer(
    game: Game, member: ClientId, request: UnmaskRequest, listed: tuple[SealedContribution, ...]
) -> key_shares.Share | None:
    session = game.members[member]
    try:
        session.receive(encode(msgspec.structs.replace(request, contributions=listed)))
        (answer,) = session.persisted()
    except ProtocolError:
        return None
    message = decode_signed(answer.data, PartialSum, limit=NO_LIMIT).message  # type: ignore[union-attr]
    return key_shares.decode_sum(message.share)


class TestRealMessages:
    @pytest.mark.parametrize("first_view", [*product([True, False], repeat=3)])
    def test_never_t_answers_for_both_views(self, first_view: tuple[bool, ...]) -> None:
        """Five members, two corrupt, t = 5; every split of the honest three."""
        game = Game(round_config(5, corrupt_holders=2), random_vectors(5))
        assert game.config.threshold == 5
        answers = fork(game, 2, first_view)
        assert [len(view) for view in answers] == [2 + sum(first_view), 5 - sum(first_view)]
        assert min(map(len, answers)) < game.config.threshold

    def test_one_less_gives_the_vector_away(self) -> None:
        """No configuration can be made with it; forced on everybody, the attack reads the victim's vector."""
        with pytest.raises(ValueError, match="threshold must be from 5"):
            round_config(5, corrupt_holders=2, threshold=3)
        config = round_config(5, corrupt_holders=2)
        object.__setattr__(config, "threshold", 3)
        game = Game(config, random_vectors(5))
        answers = fork(game, 2, (True, False, False))
        sums = [key_shares.reconstruct(list(view), list(view.values()), threshold=3)[0] for view in answers]
        frame = game.parse(game.sent_by(VICTIM)[0])
        words = np.frombuffer(frame.vector, dtype=WORD).copy()
        ring_mask.add_mask(words, sums[1] - sums[0], seed=game.server._rules.matrix_seed)
        bits = np.uint32(config.noise_bits)
        read = (words + np.uint32(1 << (config.noise_bits - 1))) >> bits
        assert np.array_equal(read[: config.length], game.vectors[VICTIM])

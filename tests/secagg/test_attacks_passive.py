"""An honest model leaks through exact sums, over rounds and when it is published; bounds on noise hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

torch = pytest.importorskip("torch")
from sklearn.metrics import roc_auc_score  # noqa: E402
from torch import nn  # noqa: E402

from protocols import PolicyRefusal  # noqa: E402
from secagg import AggregationConfig, ClientLevel, NoPrivacy  # noqa: E402
from secagg.attacks.arena import clipped, config_for, local_view, parties_for, sum_under  # noqa: E402
from secagg.attacks.chance import normal, order, uniform  # noqa: E402
from secagg.attacks.final_model import (  # noqa: E402
    RecordKnowledge,
    class_picture,
    likelihood_ratio_scores,
    loss_scores,
)
from secagg.attacks.membership import Crowd, MembershipKnowledge, auc_bound, membership  # noqa: E402
from secagg.attacks.pictures import digit_pictures, fedsgd_update  # noqa: E402
from secagg.attacks.rounds import difference, disaggregate  # noqa: E402
from secagg.attacks.scoring import auc, auc_of_epsilon, best_psnr, cosine, true_positives  # noqa: E402
from secagg.attacks.views import FinalModelView, PlainView, flat, observe  # noqa: E402
from secagg.attacks.words import EmbeddingKnowledge, word_scores  # noqa: E402

DIGITS = digit_pictures()
RNG_SEED = 4


def bytes_from(seed):
    return np.random.default_rng(seed).bytes


def perceptron(hidden=16):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


@pytest.fixture(scope="module")
def gradients():
    model = perceptron()
    shuffled = np.random.default_rng(RNG_SEED).permutation(len(DIGITS.labels))[:700]
    found = np.stack([flat(fedsgd_update(model, DIGITS.images[i : i + 1], DIGITS.labels[i : i + 1])) for i in shuffled])
    return clipped(found, float(np.median(np.linalg.norm(found, axis=1))))


@pytest.fixture(scope="module")
def game():
    """Half of 80 wrongly labelled digits among 100 right ones."""
    rng = np.random.default_rng(2)
    drawn = rng.permutation(len(DIGITS.labels))[:180]
    features, labels = DIGITS.images[drawn].astype(np.float32), DIGITS.labels[drawn]
    wrong = (labels[100:] + rng.integers(1, 10, size=80)) % 10
    member = np.zeros(80, dtype=bool)
    member[rng.permutation(80)[:40]] = True

    def train(chosen, given):
        model = perceptron(48)
        inputs = torch.from_numpy(np.concatenate([features[:100], chosen]))
        targets = torch.from_numpy(np.concatenate([labels[:100], given]))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        return model

    view = FinalModelView(model=train(features[100:][member], wrong[member]))
    return view, RecordKnowledge(features=features[100:], labels=wrong, train=train, shadows=8), member


class TestMembership:
    CLIENTS = 16

    def trial(self, gradients, privacy, *, rounds, colluders=0):
        """Scores where the first candidate was used and where the second was, and the noise that was there."""
        rng = np.random.default_rng(RNG_SEED)
        crowd, candidates = Crowd.of(gradients[:400]), gradients[400:]
        config = AggregationConfig.cross_silo(
            like={"u": gradients[0]}, clients=self.CLIENTS, max_dropouts=0, max_colluders=1, privacy=privacy
        )
        scores = {True: [], False: []}
        for _ in range(rounds):
            first, second = np.split(candidates[rng.permutation(len(candidates))[: 2 * self.CLIENTS]], 2)
            coins = rng.random(self.CLIENTS) < 0.5
            sent = {i + 1: {"u": (first if coins[i] else second)[i]} for i in range(self.CLIENTS)}
            view = observe(sent, config, colluders=range(self.CLIENTS - colluders + 1, self.CLIENTS + 1)).sybils
            honest = self.CLIENTS - colluders
            pairs = MembershipKnowledge(first=first[:honest], second=second[:honest], crowd=crowd)
            for coin, score in zip(coins, membership(view, pairs), strict=False):
                scores[bool(coin)].append(score)
        return np.array(scores[True]), np.array(scores[False]), view.noise_stddev

    def clip(self, gradients):
        return 1.02 * float(np.linalg.norm(gradients, axis=1).max())

    def test_an_exact_sum_of_sixteen_tells_who_used_what(self, gradients):
        first, second, _ = self.trial(gradients, NoPrivacy(clip_norm=self.clip(gradients)), rounds=4)
        assert auc(first, second) >= 0.95

    def test_noise_keeps_every_test_below_its_bound_and_this_one_above_chance(self, gradients):
        """Both sides: a bound that were far too small would be passed, a broken attack would not rise above 0.5."""
        clip = self.clip(gradients)
        privacy = ClientLevel(clip_norm=clip, epsilon=4.4, delta=1e-5, rounds=1)
        first, second, stddev = self.trial(gradients, privacy, rounds=7)
        bound = auc_bound(2 * clip, stddev)
        assert 0.5 < bound < 0.95
        error = math.sqrt(bound * (1 - bound) / min(len(first), len(second)))
        assert 0.55 < auc(first, second) < bound + 2 * error

    def test_beyond_the_assumed_colluders_the_promise_is_off(self, gradients):
        privacy = ClientLevel(clip_norm=self.clip(gradients), epsilon=4.4, delta=1e-5, rounds=1)
        first, second, stddev = self.trial(gradients, privacy, rounds=8, colluders=15)
        assert auc_bound(2 * self.clip(gradients), stddev) > 0.999
        assert auc(first, second) > 0.9

    @given(st.floats(0.01, 100), st.floats(0.01, 100))
    def test_the_bound_is_that_of_two_shifted_normals(self, sensitivity, stddev):
        assert auc_bound(sensitivity, stddev) == pytest.approx(norm.cdf(sensitivity / stddev / math.sqrt(2)))
        assert auc_bound(sensitivity, 0.0) == 1.0

    def test_the_score_is_the_likelihood_ratio(self):
        """Against the densities of scipy, in few dimensions where they can be computed."""
        from scipy.stats import multivariate_normal

        rng = np.random.default_rng(0)
        public = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + rng.normal(size=4)
        first, second, total = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.normal(size=4)
        view = PlainView(vector=total, noise_stddev=0.7, clients=5)
        covariance = 4 * np.cov(public.T, bias=True) + 0.49 * np.eye(4)
        expected = [
            multivariate_normal(4 * public.mean(axis=0) + a, covariance).logpdf(total)
            - multivariate_normal(4 * public.mean(axis=0) + b, covariance).logpdf(total)
            for a, b in zip(first, second, strict=True)
        ]
        scores = membership(view, MembershipKnowledge(first=first, second=second, crowd=Crowd.of(public)))
        np.testing.assert_allclose(scores, expected, rtol=1e-6)

    def test_shapes_that_do_not_fit_are_refused(self):
        crowd = Crowd.of(np.eye(3))
        with pytest.raises(ValueError, match="no pairs"):
            MembershipKnowledge(first=np.ones((2, 3)), second=np.ones((1, 3)), crowd=crowd)
        with pytest.raises(ValueError, match="does not fit"):
            MembershipKnowledge(first=np.ones((2, 4)), second=np.ones((2, 4)), crowd=crowd)
        with pytest.raises(ValueError, match="at least two"):
            Crowd.of(np.ones((1, 3)))
        pair = MembershipKnowledge(first=np.ones((2, 3)), second=np.zeros((2, 3)), crowd=crowd)
        with pytest.raises(ValueError, match=r"shape \(4,\)"):
            membership(PlainView(vector=np.ones(4)), pair)


class TestSeveralRounds:
    MODEL = {"w": np.linspace(-1, 1, 50)}  # noqa: RUF012

    def updates(self, clients=8, seed=0):
        rng = np.random.default_rng(seed)
        return {client: {"w": rng.normal(size=50)} for client in range(1, clients + 1)}

    def test_two_sums_give_a_client_away_unless_the_model_is_the_same(self):
        updates = self.updates()
        config = config_for(self.MODEL, "masked", clients=8, clip_norm=50.0, max_dropouts=1)
        parties = parties_for(config)
        whole = observe(updates, config, model=self.MODEL, simulation=parties).server
        with pytest.raises(PolicyRefusal, match="same model"):
            observe(updates, config, model=self.MODEL, drop={8}, simulation=parties)
        nudged = {"w": np.nextafter(self.MODEL["w"], np.inf)}
        part = observe(updates, config, model=nudged, drop={8}, simulation=parties).server
        assert cosine(difference((whole, part)), flat(updates[8])) > 0.999
        with pytest.raises(ValueError, match="fewer"):
            difference((part, whole))

    def test_noise_of_two_rounds_hides_the_difference(self):
        updates = self.updates()
        config = config_for(self.MODEL, "noised", clients=8, clip_norm=7.0, rounds=2, max_dropouts=1)
        parties = parties_for(config)
        whole = observe(updates, config, simulation=parties).server
        part = observe(updates, config, drop={8}, simulation=parties).server
        assert cosine(difference((whole, part)), flat(updates[8])) < 0.6

    def test_participation_solves_for_everybody(self):
        config = config_for(self.MODEL, "masked", clients=6, clip_norm=50.0, max_dropouts=2)
        parties, static, rng = parties_for(config), self.updates(6), np.random.default_rng(1)
        views = []
        for number in range(14):
            sent = {c: {"w": update["w"] + 0.3 * rng.normal(size=50)} for c, update in static.items()}
            gone = {int(c) for c in rng.choice(6, size=2, replace=False) + 1}
            model = {"w": self.MODEL["w"] * (1 + number)}
            views.append(observe(sent, config, model=model, drop=gone, simulation=parties).server)
        found = disaggregate(views, range(1, 7))
        truth = np.stack([flat(update) for update in static.values()])
        assert np.mean([cosine(a, b) for a, b in zip(found, truth, strict=True)]) > 0.9
        with pytest.raises(ValueError, match="no rounds"):
            disaggregate([], [1])


class TestWords:
    def update(self, tokens):
        model = nn.EmbeddingBag(50, 4)
        head = nn.Sequential(model, nn.Linear(4, 50))
        loss = nn.functional.cross_entropy(head(torch.tensor([tokens])), torch.tensor([tokens[0]]))
        return {"e": torch.autograd.grad(loss, [model.weight])[0].numpy()}

    @pytest.mark.parametrize(("defence", "certain"), [("masked", True), ("noised", False)])
    def test_the_cohorts_words_are_in_the_sum_until_noise_fills_the_rows(self, defence, certain):
        typed = {client: [client, 2 * client + 10, 3 * client + 20] for client in range(1, 5)}
        view = sum_under({client: self.update(tokens) for client, tokens in typed.items()}, defence).server
        scores = word_scores(view, EmbeddingKnowledge(words=50, width=4))
        used = np.isin(np.arange(50), [token for tokens in typed.values() for token in tokens])
        assert (auc(scores[used], scores[~used]) == 1.0) is certain
        assert ((scores > 0) == used).all() == certain

    def test_a_view_without_the_embedding_is_refused(self):
        with pytest.raises(ValueError, match="ends at 10"):
            word_scores(np.ones(9), EmbeddingKnowledge(words=2, width=4, offset=2))


class TestFinalModel:
    def test_the_likelihood_ratio_finds_members_and_more_than_the_loss_at_few_false_alarms(self, game):
        view, knowledge, member = game
        ratio = likelihood_ratio_scores(view, knowledge, rand=bytes_from(0))
        loss = loss_scores(view, knowledge)
        assert auc(ratio[member], ratio[~member]) > 0.8
        assert auc(ratio[member], ratio[~member]) >= auc(loss[member], loss[~member]) - 0.02
        assert true_positives(ratio[member], ratio[~member], at=0.1) > 0.3

    def test_a_model_that_saw_neither_half_tells_nothing(self, game):
        _, knowledge, member = game
        stranger = FinalModelView(model=knowledge.train(knowledge.features[:0], knowledge.labels[:0]))
        scores = likelihood_ratio_scores(stranger, knowledge, rand=bytes_from(0))
        assert 0.3 < auc(scores[member], scores[~member]) < 0.7

    def test_a_class_shows_what_its_members_have_in_common(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        images = torch.tensor(DIGITS.images, dtype=torch.float32)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), torch.tensor(DIGITS.labels)).backward()
            optimizer.step()
        overall = DIGITS.images.mean(axis=0)
        nearer = 0
        for label in range(10):
            mean = DIGITS.images[DIGITS.labels == label].mean(axis=0) - overall
            found = class_picture(FinalModelView(model=model), label, start=overall) - overall
            nearer += cosine(found.ravel(), mean.ravel()) > 0.3
        assert nearer >= 8

    def test_too_few_shadows_are_refused(self, game):
        with pytest.raises(ValueError, match="shadows = 3"):
            RecordKnowledge(features=np.ones((2, 1)), labels=np.zeros(2, np.int64), train=game[1].train, shadows=3)
        with pytest.raises(ValueError, match="2 records with 1 labels"):
            RecordKnowledge(features=np.ones((2, 1)), labels=np.zeros(1, np.int64), train=game[1].train)


class TestScores:
    @given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20))
    def test_auc_is_that_of_scikit_learn_ties_included(self, members, others):
        truth = [1] * len(members) + [0] * len(others)
        expected = roc_auc_score(truth, members + others)
        assert auc(np.array(members, float), np.array(others, float)) == pytest.approx(expected)

    def test_true_positives_never_allow_more_false_ones_than_said(self):
        others = np.arange(100.0)
        assert true_positives(np.array([98.5, 97.5]), others, at=0.01) == 0.5
        assert true_positives(np.array([98.5, 97.5]), others, at=0.009) == 0.0

    @given(st.floats(0, 12))
    def test_pure_epsilon_bounds_the_area_by_the_logistic(self, epsilon):
        bound = auc_of_epsilon(epsilon, 0.0)
        assert bound == pytest.approx(1 / (1 + math.exp(-epsilon)), abs=2e-5)
        assert bound >= 1 / (1 + math.exp(-epsilon)) - 1e-12
        assert auc_of_epsilon(epsilon, 0.1) >= bound
        assert auc_of_epsilon(math.inf, 0.0) == 1.0

    def test_no_guess_is_the_worst_guess(self):
        truths = DIGITS.images[:3]
        np.testing.assert_array_equal(best_psnr(truths, np.empty((0, 8, 8))), 0)
        np.testing.assert_array_equal(best_psnr(truths, truths[::-1]), 100)
        np.testing.assert_allclose(best_psnr(np.full((1, 2, 2), 0.5), np.full((2, 2, 2), 0.6)), 20)
        assert cosine(np.zeros(3), np.ones(3)) == 0


def test_local_noise_is_as_large_as_the_sums():
    update = {"w": np.zeros(4000)}
    config = config_for(update, "noised", clients=8, clip_norm=1.0)
    view = local_view(update, config)
    assert view.noise_stddev == pytest.approx(config.mechanism.noise_multiplier, rel=1e-6)
    assert np.std(view.vector) == pytest.approx(view.noise_stddev, rel=0.06)
    with pytest.raises(ValueError, match="needs a configuration with noise"):
        local_view(update, config_for(update, "masked", clients=8, clip_norm=1.0))


def test_the_adversarys_chance_repeats_with_its_bytes():
    for draw in (normal, uniform):
        np.testing.assert_array_equal(draw((3, 2), rand=bytes_from(1)), draw((3, 2), rand=bytes_from(1)))
        assert not np.array_equal(draw((3, 2), rand=bytes_from(1)), draw((3, 2), rand=bytes_from(2)))
    assert sorted(order(9, rand=bytes_from(0))) == list(range(9))

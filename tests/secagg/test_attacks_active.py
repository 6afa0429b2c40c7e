"""A lying server gets pictures through masks; noise, binding or a look at the model takes them away again."""

import os
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from protocols import PolicyRefusal, RemoteProtocolError  # noqa: E402
from secagg import AggregationConfig, Client, Identity, MemoryHistory, NoPrivacy, Roster, Server  # noqa: E402
from secagg.adapters.torch import parameters_of  # noqa: E402
from secagg.attacks.arena import sums_seen  # noqa: E402
from secagg.attacks.imprint import expected_alone, imprint, imprint_model, wiener  # noqa: E402
from secagg.attacks.inconsistency import dead_copy, send_two_models  # noqa: E402
from secagg.attacks.linear import LinearKnowledge, invert_linear  # noqa: E402
from secagg.attacks.pictures import digit_pictures, fedsgd_update  # noqa: E402
from secagg.attacks.scoring import best_psnr  # noqa: E402
from secagg.attacks.trap import trap, trap_model  # noqa: E402
from secagg.attacks.views import flat, observe  # noqa: E402
from secagg.linter import refuse_planted  # noqa: E402

DIGITS = digit_pictures()
ORDER = np.random.default_rng(5).permutation(len(DIGITS.labels))
PUBLIC, PRIVATE = DIGITS.take(ORDER[:300]), DIGITS.take(ORDER[300:])
CLIENTS = 20
GUESS = best_psnr(PRIVATE.images[:CLIENTS], PUBLIC.images.mean(axis=0)[None])


def bytes_from(seed):
    return np.random.default_rng(seed).bytes


def one_picture_each(model, clients=CLIENTS):
    return {
        client: fedsgd_update(model, PRIVATE.images[client - 1 : client], PRIVATE.labels[client - 1 : client])
        for client in range(1, clients + 1)
    }


def perceptron(hidden, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


PLANTED = {
    "imprint": lambda: imprint_model(PUBLIC.images, bins=128, classes=10, sparse=False, rand=bytes_from(1)),
    "imprint, sparse": lambda: imprint_model(PUBLIC.images, bins=128, classes=10, sparse=True, rand=bytes_from(1)),
    "trap": lambda: trap_model(PUBLIC.images, units=150, batch=CLIENTS, classes=10, rand=bytes_from(1)),
}


def read(kind, view, planted):
    if kind == "trap":
        return trap(view, planted)
    return imprint(view, planted, noise_stddev=view.noise_stddev)


@pytest.mark.parametrize("kind", PLANTED)
class TestPlantedModels:
    def test_pictures_come_through_real_masks_exactly(self, kind):
        planted = PLANTED[kind]()
        (view,) = sums_seen(one_picture_each(planted.model), "masked", sample=1)
        scores = best_psnr(PRIVATE.images[:CLIENTS], read(kind, view, planted))
        assert (scores > 30).sum() >= 0.5 * CLIENTS
        assert np.median(scores) > GUESS.max()

    @pytest.mark.parametrize("defence", ["noised", "local"])
    def test_noise_of_the_size_of_the_clip_leaves_none(self, kind, defence):
        planted = PLANTED[kind]()
        views = sums_seen(one_picture_each(planted.model), defence, sample=3)
        found = np.concatenate([read(kind, view, planted) for view in views])
        assert (best_psnr(PRIVATE.images[:CLIENTS], found) > 20).sum() == 0

    def test_clients_that_look_at_it_refuse_it_before_anything_leaves(self, kind):
        model = parameters_of(PLANTED[kind]().model)
        config = AggregationConfig.cross_silo(
            like=model, clients=4, max_dropouts=0, max_colluders=0, privacy=NoPrivacy(clip_norm=1.0)
        )
        everybody = dict.fromkeys(range(1, 5), model)
        assert send_two_models(everybody, config).masked_vectors == 4
        records = PRIVATE.images[:50] if kind == "trap" else None  # a trap for few records needs some to be seen
        attempt = send_two_models(everybody, config, inspect=partial(refuse_planted, records=records))
        assert attempt.aborted
        assert {type(error) for error in attempt.refusals.values()} == {PolicyRefusal}
        assert "1.weight" in str(attempt.refusals[1])

    def test_a_view_of_another_model_is_refused(self, kind):
        with pytest.raises(ValueError, match="the view has 10 coordinates"):
            (trap if kind == "trap" else imprint)(np.ones(10), PLANTED[kind]())


def test_as_many_pictures_as_balls_alone_in_bins():
    """Bins over the very pictures' law: the count is that of n(1 - 1/k)^(n - 1) within four standard deviations."""
    rng = np.random.default_rng(3)
    pictures = np.clip(0.5 + 0.05 * rng.normal(size=(400, 1, 1)) + 0.0 * rng.random((400, 6, 6)), 0, 1)
    pictures = np.clip(pictures + 0.2 * (rng.random((400, 6, 6)) - 0.5), 0, 1)
    planted = imprint_model(pictures[:200], bins=64, classes=4, sparse=True, rand=bytes_from(2))
    images = pictures[200:280]
    view = sum(flat(fedsgd_update(planted.model, image[None], np.array([i % 4]))) for i, image in enumerate(images))
    alone = (best_psnr(images, imprint(view, planted)) > 40).sum()
    expected = expected_alone(80, 64)
    assert expected == pytest.approx(80 * (63 / 64) ** 79)
    assert abs(alone - expected) < 4 * np.sqrt(80 * 0.25)


def test_a_little_noise_is_not_enough_against_the_sparse_form():
    """z = 0.003 on the sum: an epsilon that nobody should call protection."""
    planted = PLANTED["imprint, sparse"]()
    updates = [flat(update) for update in one_picture_each(planted.model).values()]
    clip = float(np.median([np.linalg.norm(update) for update in updates]))
    total = sum(update * min(1, clip / np.linalg.norm(update)) for update in updates)
    noise = np.random.default_rng(0).normal(size=len(total))
    found = imprint(total + 0.003 * clip * noise, planted, noise_stddev=0.003 * clip)
    scores = best_psnr(PRIVATE.images[:CLIENTS], found)
    assert (scores > 20).sum() >= 4
    assert (best_psnr(PRIVATE.images[:CLIENTS], imprint(total + clip * noise, planted, noise_stddev=clip)) < 20).all()


def test_the_wiener_filter_is_the_identity_without_noise_and_the_mean_with_much():
    flat_public = PUBLIC.images.reshape(300, 64)
    some = flat_public[:5]
    np.testing.assert_allclose(wiener(some, np.zeros(5), flat_public), some, atol=1e-6)
    drowned = wiener(some + 1e6, np.full(5, 1e9), flat_public)
    np.testing.assert_allclose(drowned, np.tile(flat_public.mean(axis=0), (5, 1)), atol=1e-3)


class TestModelInconsistency:
    CLIENTS, VICTIM = 8, 3

    def models(self):
        model = perceptron(60)
        return model, dead_copy(model)

    def updates(self):
        model, dead = self.models()
        return {
            client: fedsgd_update(
                model if client == self.VICTIM else dead,
                PRIVATE.images[client : client + 1],
                PRIVATE.labels[client : client + 1],
            )
            for client in range(1, self.CLIENTS + 1)
        }

    def config(self, like, clip_norm=100.0):
        return AggregationConfig.cross_silo(
            like=like, clients=self.CLIENTS, max_dropouts=0, max_colluders=0, privacy=NoPrivacy(clip_norm=clip_norm)
        )

    def test_without_binding_the_sum_is_the_victims(self):
        updates = self.updates()
        seen = observe(updates, self.config(updates[1])).server
        found = invert_linear(seen, LinearKnowledge(units=60, inputs=64, images=1), rand=bytes_from(0))
        truth = PRIVATE.images[self.VICTIM : self.VICTIM + 1]
        assert best_psnr(truth, found.reshape(1, 8, 8))[0] > 60

    def test_with_binding_the_round_ends_before_any_masked_vector(self):
        model, dead = map(parameters_of, self.models())
        models = {client: model if client == self.VICTIM else dead for client in range(1, self.CLIENTS + 1)}
        attempt = send_two_models(models, self.config(model))
        assert attempt.aborted
        assert set(attempt.refusals) == set(models)
        assert all(type(error) is RemoteProtocolError for error in attempt.refusals.values())

    def test_one_model_for_all_is_no_reason_to_refuse(self):
        model = parameters_of(self.models()[0])
        attempt = send_two_models(dict.fromkeys(range(1, self.CLIENTS + 1), model), self.config(model))
        assert not attempt.refusals
        assert attempt.masked_vectors == self.CLIENTS

    def test_the_dead_copy_is_dead_and_the_original_is_not_touched(self):
        model, dead = self.models()
        before = parameters_of(perceptron(60))
        for name, array in parameters_of(model).items():
            np.testing.assert_array_equal(array, before[name])
        update = fedsgd_update(dead, PRIVATE.images[:4], PRIVATE.labels[:4])
        assert not update["1.weight"].any()
        assert not update["1.bias"].any()
        with pytest.raises(ValueError, match="no layer before the last"):
            dead_copy(nn.Linear(4, 2))

    def test_wrong_numbers_of_models_are_named(self):
        model = parameters_of(self.models()[0])
        with pytest.raises(ValueError, match="1 models for 8 clients"):
            send_two_models({1: model}, self.config(model))


class TestExactLinear:
    @pytest.mark.parametrize("images", [1, 2, 4, 6])
    def test_whole_batches_fall_out_of_an_exact_sum(self, images):
        model = perceptron(200, seed=images)
        updates = one_picture_each(model, images)
        view = list(updates[1].values()) if images == 1 else sums_seen(updates, "masked", sample=1)[0]
        if images == 2:  # too few for masks: the sum of two is the difference of one
            view = [first + second for first, second in zip(updates[1].values(), updates[2].values(), strict=True)]
        found = invert_linear(view, LinearKnowledge(units=200, inputs=64, images=images), rand=bytes_from(7))
        scores = best_psnr(PRIVATE.images[:images], found.reshape(-1, 8, 8))
        assert (scores > 60).sum() >= images - (images > 4)

    def test_noise_leaves_nothing_exact(self):
        updates = one_picture_each(perceptron(200), 4)
        (view,) = sums_seen(updates, "noised", sample=1)
        found = invert_linear(
            view, LinearKnowledge(units=200, inputs=64, images=4), rand=bytes_from(7), tries=1000
        ).clip(0, 1)
        assert (best_psnr(PRIVATE.images[:4], found.reshape(-1, 8, 8)) < 20).all()

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"images": 13}, r"\[1, 12\]"), ({"units": 0}, "units = 0"), ({"images": 0}, "got 0"), ({"offset": -1}, "-1")],
    )
    def test_impossible_layers_are_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            LinearKnowledge(**{"units": 20, "inputs": 20, "images": 2, **change})

    def test_a_view_that_ends_before_the_layer_is_refused(self):
        with pytest.raises(ValueError, match="the layer ends at 420"):
            invert_linear(np.ones(419), LinearKnowledge(units=20, inputs=20, images=2), rand=os.urandom)


def test_a_refused_model_costs_no_budget_and_an_unnamed_one_is_not_looked_at():
    """`inspect` runs before anything is reserved or sent; it sees exactly the model that the round names."""
    model = parameters_of(perceptron(20))
    config = AggregationConfig.cross_silo(
        like=model, clients=3, max_dropouts=0, max_colluders=0, privacy=NoPrivacy(clip_norm=1.0)
    )
    identity = Identity.generate()
    roster = Roster({1: identity.public, 2: Identity.generate().public, 3: Identity.generate().public})
    seen = []
    client = Client(config, 1, identity=identity, roster=roster, history=MemoryHistory(), inspect=seen.append)
    server = Server(config, roster=roster)
    assert client.begin(server.begin(model)[0].data, model=model)
    assert seen == [model]
    client.abandon()
    assert client.begin(server.begin()[0].data)
    assert seen == [model]

"""The inversion attack must be strong where nothing protects, and must lose to a blind guess where something does."""

import copy
import importlib
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from dp import from_ring  # noqa: E402
from secagg.attacks import inversion  # noqa: E402
from secagg.attacks.inversion import (  # noqa: E402
    InversionKnowledge,
    infer_labels,
    invert_gradient,
    matched_psnr,
    psnr,
)
from secagg.datasets import load_digits, split  # noqa: E402

PUBLIC, PRIVATE = split(load_digits(), test_fraction=0.2, seed=1)
PRIOR = PUBLIC.features.mean(axis=0).reshape(8, 8)

MODELS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    "relu": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    "tanh": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)),
}


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors are tiny: a second thread only spins, and tenfold so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(kind, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS[kind]()


def digits(indices):
    return PRIVATE.features[indices].reshape(-1, 8, 8), PRIVATE.labels[indices]


def gradient(model, images, labels):
    """The client's side: plain float32 autograd, independent of the attack's own code."""
    loss = nn.functional.cross_entropy(model(torch.tensor(images)), torch.tensor(labels), reduction="sum")
    parts = torch.autograd.grad(loss, list(model.parameters()))
    return np.concatenate([part.numpy().ravel() for part in parts]).astype(np.float64)


def know(model, labels=None, images=1, shape=(8, 8)):
    return InversionKnowledge(
        model=model, loss=nn.functional.cross_entropy, input_shape=shape, labels=labels, images=images
    )


def bytes_from(seed):
    return np.random.default_rng(seed).bytes


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("index", "scale"), [(3, 1.0), (40, 1e-4), (77, 300.0)])
def test_one_digit_falls_from_its_plain_gradient_at_any_scale(kind, index, scale):
    model = make_model(kind, seed=index)
    images, labels = digits([index])
    found = invert_gradient(scale * gradient(model, images, labels), know(model), rand=bytes_from(index))
    assert psnr(images, found.images) > 60
    assert found.labels == tuple(labels)
    assert found.objective < 1e-9
    assert found.images.dtype == np.float64
    assert found.images.min() >= 0
    assert found.images.max() <= 1


@pytest.mark.parametrize("kind", ["linear", "relu"])
def test_masked_words_are_worth_less_than_a_blind_guess(kind):
    """A one-time-padded vector is uniform ring words, whatever the digit."""
    for index in (3, 40):
        model = make_model(kind, seed=index)
        images, labels = digits([index])
        words = np.random.default_rng(index).integers(0, 2**32, gradient(model, images, labels).size, dtype=np.uint32)
        view = from_ring(words, modulus_bits=32).astype(np.float64)
        found = invert_gradient(view, know(model), rand=bytes_from(index))
        assert psnr(images[0], found.images[0]) < psnr(images[0], PRIOR)
        assert found.objective > 0.5


@pytest.mark.parametrize("kind", ["linear", "relu"])
def test_noise_at_the_size_of_the_clip_beats_the_attack_and_little_noise_does_not(kind):
    """z = 1 hides a digit, z = 0.003 does not: a defence is only as good as its noise."""
    model = make_model(kind)
    images, labels = digits([3])
    clean = gradient(model, images, labels)
    clean /= np.linalg.norm(clean)
    noise = np.random.default_rng(5).normal(size=clean.size)
    hidden = invert_gradient(clean + noise, know(model), rand=bytes_from(1))
    assert psnr(images[0], hidden.images[0]) < psnr(images[0], PRIOR)
    seen = invert_gradient(clean + 0.003 * noise, know(model), rand=bytes_from(1))
    assert psnr(images[0], seen.images[0]) > 30


def test_an_exact_sum_of_eight_gradients_still_shows_digits():
    """Masking hides who sent what, not what is in the sum: the reason for noise."""
    model = make_model("tanh")
    images, labels = digits(np.arange(8))
    view = gradient(model, images, labels)
    found = invert_gradient(view, know(model, labels=tuple(labels.tolist()), images=8), rand=bytes_from(0))
    scores = matched_psnr(images, found.images)
    assert (scores > 25).sum() >= 4
    assert scores.mean() > np.mean([psnr(image, PRIOR) for image in images]) + 10


def test_smoothing_helps_a_smooth_picture_under_noise(monkeypatch):
    """The sweep is what makes the attack adapt to noise; without it, the defence would look better than it is."""
    side = np.linspace(-1, 1, 16)
    picture = np.exp(-2 * (side[:, None] ** 2 + (side[None, :] - 0.3) ** 2)).astype(np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.Tanh(), nn.Linear(16, 4))
    clean = gradient(model, picture[None], [2])
    view = clean / np.linalg.norm(clean) + 0.01 * np.random.default_rng(0).normal(size=clean.size)
    smoothed = invert_gradient(view, know(model, shape=(16, 16)), rand=bytes_from(0))
    monkeypatch.setattr(inversion, "_SMOOTHNESS", ())
    rough = invert_gradient(view, know(model, shape=(16, 16)), rand=bytes_from(0))
    assert psnr(picture, smoothed.images[0]) > psnr(picture, rough.images[0]) + 2


def test_inputs_that_are_no_pictures_are_attacked_without_smoothing():
    model = nn.Linear(64, 10)
    images, labels = digits([5])
    view = gradient(model, images.reshape(1, 64), labels)
    view += 0.003 * np.linalg.norm(view) * np.random.default_rng(0).normal(size=view.size)
    found = invert_gradient(view, know(model, shape=(64,)), rand=bytes_from(0))
    assert found.images.shape == (1, 64)
    assert psnr(images.reshape(1, 64), found.images) > 30


def test_more_unknown_pixels_than_coordinates_still_gives_an_answer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    images, _ = digits([0, 1, 2, 3])
    view = gradient(model, images, [0, 1, 0, 1])
    view += 0.1 * np.random.default_rng(0).normal(size=view.size)
    found = invert_gradient(view, know(model, labels=(0, 1, 0, 1), images=4), rand=bytes_from(0), iterations=60)
    assert found.images.shape == (4, 8, 8)
    assert 0 <= found.objective <= 1


def test_the_attack_changes_neither_the_model_nor_the_view_nor_torchs_generator():
    model = make_model("relu").train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    images, labels = digits([3])
    view = gradient(model, images, labels)
    view.setflags(write=False)
    first = invert_gradient(view, know(model), rand=bytes_from(9), restarts=1)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(torch.get_rng_state(), state)
    again = invert_gradient(view, know(model), rand=bytes_from(9), restarts=1)
    np.testing.assert_array_equal(first.images, again.images)


def test_frozen_parameters_are_no_part_of_the_view():
    model = make_model("relu")
    model[1].weight.requires_grad_(False)
    images, labels = digits([3])
    loss = nn.functional.cross_entropy(model(torch.tensor(images)), torch.tensor(labels))
    parts = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    view = np.concatenate([part.numpy().ravel() for part in parts]).astype(np.float64)
    assert view.size == 32 + 320 + 10
    found = invert_gradient(view, know(model), rand=bytes_from(3))
    assert found.objective < 0.1


@pytest.mark.parametrize("kind", MODELS)
def test_the_label_of_one_picture_is_always_inferred(kind):
    for index in range(25):
        model = make_model(kind, seed=index)
        images, labels = digits([index])
        view = 0.01 * gradient(model, images, labels)
        assert infer_labels(view, know(model), rand=bytes_from(0)) == (labels[0],)


def test_class_counts_of_several_pictures_are_inferred():
    for seed in range(10):
        model = make_model("relu", seed=seed)
        images, labels = digits(np.arange(6) + 6 * seed)
        guess = infer_labels(7 * gradient(model, images, labels), know(model, images=6), rand=bytes_from(seed))
        assert sorted(guess) == sorted(labels)


def test_labels_without_positive_bias_gradient_are_still_a_full_guess():
    model = make_model("linear")
    view = np.zeros(650)
    view[0], view[-1] = 1.0, -1.0
    guess = infer_labels(view, know(model, images=5), rand=bytes_from(0))
    assert len(guess) == 5


def test_labels_cannot_be_inferred_without_a_final_bias():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    with pytest.raises(ValueError, match="give `labels`"):
        invert_gradient(np.ones(640), know(model), rand=bytes_from(0))
    images, labels = digits([3])
    view = gradient(model, images, labels)
    found = invert_gradient(view, know(model, labels=(int(labels[0]),)), rand=bytes_from(0))
    assert found.objective < 1e-9


def test_a_model_that_answers_nan_gives_a_guess_that_explains_nothing():
    model = make_model("linear")
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    found = invert_gradient(np.ones(650), know(model, labels=(1,)), rand=bytes_from(0), iterations=6)
    assert found.objective == float("inf")
    assert np.isfinite(found.images).all()


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (np.ones(649), r"shape \(649,\).*\(650,\)"),
        (np.ones((1, 650)), r"\(1, 650\)"),
        (np.r_[np.ones(648), np.nan, np.inf], "2 coordinates"),
        (np.zeros(650), "zero everywhere"),
    ],
)
def test_unusable_views_are_refused(view, message):
    with pytest.raises(ValueError, match=message):
        invert_gradient(view, know(make_model("linear")), rand=bytes_from(0))


@pytest.mark.parametrize("change", [{"restarts": 0}, {"iterations": 0}])
def test_an_empty_search_is_refused(change):
    with pytest.raises(ValueError, match="at least 1"):
        invert_gradient(np.ones(650), know(make_model("linear")), rand=bytes_from(0), **change)


def test_a_huge_view_does_not_overflow():
    model = make_model("linear")
    images, labels = digits([3])
    view = gradient(model, images, labels) * 1e300
    assert psnr(images, invert_gradient(view, know(model), rand=bytes_from(0)).images) > 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, "images = 0"),
        ({"shape": ()}, "input_shape"),
        ({"shape": (8, 0)}, "input_shape"),
        ({"labels": (1, 2)}, "2 labels for 1 images"),
    ],
)
def test_inconsistent_knowledge_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        know(make_model("linear"), **change)


def test_psnr_is_the_textbook_one_with_a_cap():
    truth = np.full((4, 4), 0.5)
    assert psnr(truth, truth + 0.1) == pytest.approx(20)
    assert psnr(truth, truth + 0.01) == pytest.approx(40)
    assert psnr(truth, truth) == 100
    assert psnr(truth, truth + 1e-9) == 100
    with pytest.raises(ValueError, match="compared"):
        psnr(truth, truth[0])


def test_matched_psnr_undoes_any_order():
    truths = PRIVATE.features[:6].reshape(6, 8, 8)
    order = np.array([4, 2, 0, 5, 1, 3])
    noise = 0.1 * np.random.default_rng(0).choice([-1, 1], size=truths.shape)
    np.testing.assert_allclose(matched_psnr(truths, (truths + noise)[order]), 20, atol=1e-5)
    np.testing.assert_array_equal(matched_psnr(truths[:2], truths[order]), [100, 100])
    with pytest.raises(ValueError, match="1 guesses for 2 truths"):
        matched_psnr(truths[:2], truths[:1])


def test_missing_torch_names_the_cure(monkeypatch):
    monkeypatch.delitem(sys.modules, "secagg.attacks.inversion")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'secagg\[torch\]'"):
        importlib.import_module("secagg.attacks.inversion")

"""The linter names what is planted and stays silent on what is initialised or trained."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from protocols import PolicyRefusal  # noqa: E402
from secagg.adapters.torch import parameters_of  # noqa: E402
from secagg.attacks.imprint import imprint_model  # noqa: E402
from secagg.attacks.inconsistency import dead_copy  # noqa: E402
from secagg.attacks.pictures import digit_pictures  # noqa: E402
from secagg.attacks.trap import trap_model  # noqa: E402
from secagg.linter import Finding, lint, refuse_planted  # noqa: E402

DIGITS = digit_pictures()


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(300, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 300)


MODELS = {
    "linear": lambda: nn.Linear(64, 10),
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10)),
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.GroupNorm(4, 16),
        nn.Flatten(), nn.Linear(16 * 16, 10),
    ),
    "recurrent": lambda: nn.GRU(16, 32),
    "transformer": Transformer,
}  # fmt: skip


def kinds(model, **options):
    return {finding.kind for finding in lint(model, **options)}


@pytest.mark.parametrize("kind", MODELS)
def test_fresh_models_have_no_findings(kind):
    with torch.random.fork_rng():
        for seed in range(20):
            torch.manual_seed(seed)
            model = MODELS[kind]()
            assert lint(model) == []
            refuse_planted(parameters_of(model))


@pytest.mark.parametrize("kind", ["linear", "perceptron", "convolution"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ],
    ids=["sgd", "adamw"],
)
def test_trained_models_have_no_findings(kind, optimizer):
    images = torch.tensor(DIGITS.images[:600, None], dtype=torch.float32)
    labels = torch.tensor(DIGITS.labels[:600])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MODELS[kind]()
        descent = optimizer(model.parameters())
        for _ in range(12 if kind == "convolution" else 40):
            for batch in torch.randperm(600).split(100):
                descent.zero_grad()
                outputs = model(images[batch].flatten(1) if kind == "linear" else images[batch])
                nn.functional.cross_entropy(outputs, labels[batch]).backward()
                descent.step()
        accuracy = (model(images.flatten(1) if kind == "linear" else images).argmax(1) == labels).float().mean()
    assert accuracy > 0.9  # it really is trained
    assert lint(model) == []
    assert lint(model, records=DIGITS.images[600:700]) == []


@pytest.mark.parametrize("sparse", [False, True])
def test_imprints_are_seen(sparse):
    planted = imprint_model(
        DIGITS.images[:200], bins=64, classes=10, sparse=sparse, rand=np.random.default_rng(0).bytes
    )
    assert kinds(planted.model) >= {"parallel rows", "rank one"}


@given(noise=st.floats(0, 0.1), scale=st.floats(0.1, 10))
def test_noise_on_an_imprint_is_seen_through_while_the_imprint_still_works(noise, scale):
    rng = np.random.default_rng(0)
    rows = scale * (np.ones((64, 64)) / 8 + noise / 8 * rng.normal(size=(64, 64)))
    assert kinds({"weight": rows, "bias": -np.linspace(0, 1, 64)}) & {"parallel rows", "rank one"}


def test_traps_are_seen_at_any_scale():
    planted = trap_model(DIGITS.images[:200], units=100, batch=100, classes=10, rand=np.random.default_rng(0).bytes)
    arrays = parameters_of(planted.model)
    assert "rare units" in kinds(arrays)
    scaled = {name: array / 20 if name.startswith("1.") else array for name, array in arrays.items()}
    assert "rare units" in kinds(scaled)


@pytest.mark.parametrize("batch", [20, 40])
def test_traps_for_few_records_are_seen_by_who_shows_some(batch):
    planted = trap_model(DIGITS.images[:200], units=100, batch=batch, classes=10, rand=np.random.default_rng(0).bytes)
    assert "rare units" in kinds(planted.model, records=DIGITS.images[200:300])


def test_dead_and_amplified_models_are_seen():
    model = MODELS["perceptron"]()
    assert "constant units" in kinds(dead_copy(model))
    always_on = {name: array + 1e3 * (name == "1.bias") for name, array in parameters_of(model).items()}
    assert "constant units" in kinds(always_on)
    for factor in (1e3, 1e-3):
        rescaled = {name: array * np.float32(factor) for name, array in parameters_of(model).items()}
        assert "rescaled layer" in kinds(rescaled)
    poisoned = parameters_of(model)
    poisoned["1.weight"][3, 4] = np.nan
    assert kinds(poisoned) == {"not finite"}


def test_zero_layers_and_twins_below_the_bound_are_ordinary():
    model = parameters_of(MODELS["perceptron"]())
    model["3.weight"][:] = 0  # how residual branches and adapters start
    model["1.weight"][1] = 2 * model["1.weight"][0]
    assert lint(model) == []


def test_refusal_names_every_finding():
    planted = {"w": np.ones((8, 64), dtype=np.float32), "v": np.full((8, 64), np.inf, dtype=np.float32)}
    with pytest.raises(PolicyRefusal, match=r"w: parallel rows.*w: rank one.*v: not finite"):
        refuse_planted(planted)


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="empty"):
        lint({}, input_range=(1, 1))


def test_a_finding_reads_as_a_sentence():
    assert str(Finding(layer="1.weight", kind="rank one", detail="99 %")) == "1.weight: rank one, 99 %"

"""Dealing out data: complete, disjoint, deterministic, with the promised law; and the digits are the known digits."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import datasets
from secagg.datasets import Dataset, DatasetError, dirichlet_partition, load_digits, real, split
from secagg.datasets.core import _checked_digits


def raw_digits():
    from sklearn import datasets as sklearn_datasets

    return sklearn_datasets.load_digits(return_X_y=True)


def test_digits_are_the_known_ones_in_range():
    digits = load_digits()
    assert digits.features.shape == (1797, 64)
    assert digits.features.dtype == np.float32
    assert len(digits) == 1797
    assert digits.classes == 10
    assert digits.image_shape == (8, 8)
    assert digits.features.min() == 0
    assert digits.features.max() == 1
    pixels, labels = raw_digits()
    np.testing.assert_array_equal(digits.features * 16, pixels)
    np.testing.assert_array_equal(digits.labels, labels)


def test_altered_digits_are_refused():
    pixels, labels = raw_digits()
    with pytest.raises(DatasetError, match="shape"):
        _checked_digits(pixels[1:], labels[1:])
    relabelled = labels.copy()
    relabelled[0] = 1
    with pytest.raises(DatasetError, match="class counts"):
        _checked_digits(pixels, relabelled)
    nudged = pixels.copy()
    nudged[1000, 20] += 2.0**-40
    with pytest.raises(DatasetError, match="SHA-256"):
        _checked_digits(nudged, labels)
    with pytest.raises(DatasetError, match="SHA-256"):
        _checked_digits(pixels[::-1], labels[::-1])


def test_missing_scikit_learn_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'secagg\[data\]'"):
        load_digits()


def test_importing_the_module_loads_no_data_package():
    code = "import sys, secagg.datasets; print(*(m for m in ('sklearn', 'scipy', 'torch') if m in sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == ""


def small(n: int) -> Dataset:
    """Each row and label carries its own index, so that nothing can be mixed up unnoticed."""
    return Dataset(
        name="rows", features=np.arange(n, dtype=np.float32)[:, None], labels=np.arange(n, dtype=np.int64), classes=n
    )


@given(n=st.integers(2, 60), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**70))
def test_split_is_disjoint_complete_and_deterministic(n, fraction, seed):
    held_out = round(n * fraction)
    if not 0 < held_out < n:
        with pytest.raises(ValueError, match="empty part"):
            split(small(n), test_fraction=fraction, seed=seed)
        return
    training, test = split(small(n), test_fraction=fraction, seed=seed)
    assert len(test) == held_out
    assert sorted([*training.labels, *test.labels]) == list(range(n))
    for part in (training, test):
        np.testing.assert_array_equal(part.features[:, 0], part.labels)
    again, _ = split(small(n), test_fraction=fraction, seed=seed)
    np.testing.assert_array_equal(again.labels, training.labels)


def test_seeds_give_different_splits():
    firsts = {tuple(split(small(50), test_fraction=0.2, seed=seed)[1].labels.tolist()) for seed in range(20)}
    assert len(firsts) == 20


@settings(max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=120),
    clients=st.integers(1, 12),
    alpha=st.sampled_from([1e-6, 0.1, 1.0, 1e6]),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_partition_is_disjoint_complete_deterministic_and_keeps_the_minimum(labels, clients, alpha, seed, data):
    labels = np.array(labels, dtype=np.int64)
    minimum = data.draw(st.integers(0, len(labels) // clients))
    parts = dirichlet_partition(labels, clients=clients, alpha=alpha, seed=seed, minimum=minimum)
    assert len(parts) == clients
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for part in parts:
        assert part.dtype == np.int64
        assert len(part) >= minimum
        assert (np.diff(part) > 0).all()
    again = dirichlet_partition(labels, clients=clients, alpha=alpha, seed=seed, minimum=minimum)
    for first, second in zip(parts, again, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_follow_the_dirichlet_multinomial_law(alpha):
    """Mean and variance of one client's count against the closed form: m p (1-p) (m + A) / (1 + A), A = K alpha."""
    clients, m, trials = 4, 30, 1500
    labels = np.zeros(m, dtype=np.int64)
    counts = np.array(
        [
            [len(part) for part in dirichlet_partition(labels, clients=clients, alpha=alpha, seed=seed, minimum=0)]
            for seed in range(trials)
        ]
    )
    total = clients * alpha
    variance = m * (1 / clients) * (1 - 1 / clients) * (m + total) / (1 + total)
    np.testing.assert_allclose(counts.mean(axis=0), m / clients, atol=4 * np.sqrt(variance / trials))
    np.testing.assert_allclose(counts.var(axis=0), variance, rtol=0.2)


def test_small_alpha_concentrates_and_large_alpha_spreads():
    labels = np.repeat(np.arange(5), 200).astype(np.int64)

    def largest_share(alpha):
        parts = dirichlet_partition(labels, clients=10, alpha=alpha, seed=7, minimum=0)
        counts = np.array([np.bincount(labels[part], minlength=5) for part in parts])
        return (counts.max(axis=0) / counts.sum(axis=0)).mean()

    assert largest_share(0.05) > 0.6
    assert largest_share(1e4) < 0.2


def test_classes_are_dealt_independently():
    labels = np.repeat(np.arange(2), 400).astype(np.int64)
    a, b = [], []
    for seed in range(200):
        part = dirichlet_partition(labels, clients=3, alpha=0.5, seed=seed, minimum=0)[0]
        a.append((part < 400).sum())
        b.append((part >= 400).sum())
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": 0}, "clients"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"minimum": 11}, "minimum of 11"),
        ({"minimum": -1}, "minimum of -1"),
        ({"labels": np.array([0, -1])}, "negative"),
        ({"labels": np.array([0.5])}, "integer vector"),
        ({"labels": np.zeros((2, 2), dtype=np.int64)}, "integer vector"),
    ],
)
def test_partition_refuses_bad_arguments(change, message):
    good = {"labels": np.zeros(30, dtype=np.int64), "clients": 3, "alpha": 1.0, "seed": 0, "minimum": 1}
    with pytest.raises(ValueError, match=message):
        dirichlet_partition(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((3, 4))}, "float32"),
        ({"features": np.zeros(12, dtype=np.float32)}, "float32"),
        ({"labels": np.zeros(2, dtype=np.int64)}, r"int64\[3\]"),
        ({"labels": np.zeros(3, dtype=np.int32)}, r"int64\[3\]"),
        ({"labels": np.array([0, 1, 2])}, "below classes"),
        ({"labels": np.array([0, 1, -1])}, "negative"),
        ({"image_shape": (2, 3)}, "image_shape"),
    ],
)
def test_inconsistent_data_sets_are_refused(change, message):
    good = {
        "name": "bad",
        "features": np.zeros((3, 4), dtype=np.float32),
        "labels": np.zeros(3, dtype=np.int64),
        "classes": 2,
        "image_shape": (2, 2),
    }
    Dataset(**good)
    with pytest.raises(ValueError, match=message):
        Dataset(**{**good, **change})


class TestRealData:
    """The sets that other packages carry: known counts, public scaling, natural sites, one row for each person."""

    @pytest.mark.parametrize(
        ("load", "shape", "counts", "sites"),
        [
            (datasets.load_thyroid, (9169, 29), (6769, 2400), [5493, 2394, 956, 255, 71]),
            (datasets.load_health_insurance, (5912, 16), (2831, 3081), [1164, 1232, 735, 905, 786, 1090]),
            (datasets.load_breast_cancer, (569, 30), (357, 212), []),
            (datasets.load_intrusion, (2414, 63), (968, 30, 53, 19, 416, 22, 906), []),
            (datasets.load_telemetry, (49097, 9), (45586, 3511), []),
            (datasets.load_mnist, (5000, 784), (500,) * 10, []),
        ],
    )
    def test_what_is_in_them(
        self, load: Callable[[], Dataset], shape: tuple[int, int], counts: tuple[int, ...], sites: list[int]
    ) -> None:
        loaded = load()
        assert loaded.features.shape == shape
        assert tuple(np.bincount(loaded.labels)) == counts
        assert [len(part) for part in loaded.by_site().values()] == sites
        assert np.isfinite(loaded.features).all()
        assert np.abs(loaded.features).max() <= (4 if loaded.name == "thyroid" else 1.1)

    def test_sites_partition_the_examples(self) -> None:
        thyroid = datasets.load_thyroid()
        parts = thyroid.by_site()
        assert sum(part.labels.sum() for part in parts.values()) == thyroid.labels.sum()
        assert parts["SVHD"].site is not None
        assert set(parts["SVHD"].site) == {4}

    def test_another_file_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "changed.csv").write_text("age\n1\n")

        class Changed:
            def __str__(self) -> str:
                return real._THYROID[1]

            def locate(self) -> Path:
                return tmp_path / "changed.csv"

        monkeypatch.setattr(real, "files", lambda package: [Changed()])
        with pytest.raises(DatasetError, match="SHA-256"):
            datasets.load_thyroid()
        monkeypatch.setattr(real, "files", lambda package: [])
        with pytest.raises(DatasetError, match="does not carry"):
            datasets.load_thyroid()

    def test_a_missing_package_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(real, "_MNIST", ("no-such-package", "x", ""))
        with pytest.raises(ImportError, match=r"secagg\[data\]"):
            datasets.load_mnist()

    @pytest.mark.parametrize("site", [np.array([0, 3]), np.array([0]), np.array([0, -1])])
    def test_sites_must_exist(self, site: np.ndarray) -> None:
        with pytest.raises(ValueError, match="site must be"):
            Dataset(
                name="x", features=np.zeros((2, 1), np.float32), labels=np.zeros(2, np.int64), classes=2,
                sites=("a", "b"), site=site,
            )  # fmt: skip

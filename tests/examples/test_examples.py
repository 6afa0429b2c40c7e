"""Each example runs to its end, and what it prints is what it promises."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from secagg.cli import main as command
from secagg.datasets import INTRUSIONS, load_intrusion

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def one_thread() -> object:
    """Examples set the number of threads of their process; this one is shared."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(name: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What an example prints with `--quick`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "main"):
        module.main(["--quick", *arguments])
    return capsys.readouterr().out


def percent(text: str, pattern: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, text)]


def test_two_workers(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("two_workers", capsys)
    federated, pooled = re.findall(r"^(?:federated|pooled) +(.*)$", printed, re.MULTILINE)
    assert federated == pooled
    assert "each can subtract" in printed


def test_hospitals(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("hospitals", capsys)
    areas = percent(printed, r"AUC (\d+\.\d)")
    assert len(areas) == 5 + 2 + 1
    assert areas[5] > 90, "all in one place"
    assert areas[6] > 85, "FedAvg"
    assert max(areas) <= 100
    assert "epsilon 4; " in printed
    spent = re.search(r"spent +epsilon (\d\.\d+) so far", printed)
    assert spent is not None
    assert 3.5 < float(spent[1]) <= 4.0


def test_keyboard_shows_what_noise_for_whole_clients_costs(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("keyboard", capsys)
    frequent, masked, noised = percent(printed, r"one of three +(\d+\.\d) %")
    assert masked > frequent + 2, "the federation has learnt something"
    assert noised < masked - 2, "eight keyboards are too few"
    sent, vector, clear = (
        int(number.replace(",", "")) for number in re.findall(r"(\d[\d,]+)(?: bytes| are the|\.$)", printed, re.M)[:3]
    )
    assert vector == clear, "a masked coordinate of 32 bits is as long as a float"
    assert vector < sent
    plan = re.search(r"secagg (plan .*)$", printed, re.MULTILINE)
    assert plan is not None
    assert command(plan[1].split()) == 0
    stated = re.search(r"It would be (\d\.\d\d) times", printed)
    assert stated is not None
    error = re.search(r"expected_relative_error +(\d\.\d+)", capsys.readouterr().out)
    assert error is not None
    assert float(error[1]) == pytest.approx(float(stated[1]), abs=0.006), "the command says what the script says"


def test_keyboard_takes_any_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = [f"speaker {number}: the value of the object is the name of the class {'and the type ' * 9}\n" * 20
             for number in range(6)]  # fmt: skip
    text = tmp_path / "talk.txt"
    text.write_text("".join(lines))
    assert "5 speakers" in run("keyboard", capsys, "--text", str(text))
    text.write_text("one: the value\ntwo: of the object is the name\n")
    with pytest.raises(SystemExit, match="at least 4 speakers"):
        run("keyboard", capsys, "--text", str(text))


def test_intrusion_prints_the_recall_of_each_attack(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("intrusion", capsys)
    data = load_intrusion()
    rows = re.findall(r"^  ([\w-]+) +(\d+) +(\d+) +(\d+\.\d) +(\d+\.\d) +(\d+\.\d)$", printed, re.MULTILINE)
    assert [name for name, *_ in rows] == [*INTRUSIONS, "all"]
    assert [int(trained) + int(tested) for _, trained, tested, *_ in rows[:-1]] == np.bincount(data.labels).tolist()
    for column, least in ((3, 95), (4, 60), (5, 60)):
        weights = [int(row[2]) for row in rows[:-1]]
        recalls = [float(row[column]) for row in rows[:-1]]
        assert float(rows[-1][column]) == pytest.approx(np.average(recalls, weights=weights), abs=0.1)
        assert float(rows[-1][column]) > least
    assert "30 of 30 sums equal the plain sum of 8 to 9 sites" in printed
    assert min(percent(printed, r"area under the curve (\d+\.\d)")) > 80


def test_comparison_has_the_shape_of_the_table_in_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("comparison", capsys)

    def table(text: str) -> list[list[str]]:
        lines = [
            line for line in text.splitlines() if line.startswith(("| way", "| pooled", "| federated", "| masked"))
        ]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    measured, published = table(printed), table((ROOT / "README.md").read_text())
    assert measured[0] == published[0]
    assert [row[0] for row in measured] == [row[0] for row in published]
    unit = re.compile(r"[\d.,]+")
    for one, other in zip(measured, published, strict=True):
        assert [unit.sub("#", cell) for cell in one] == [unit.sub("#", cell) for cell in other]
    accuracies = {row[0]: float(row[1].removesuffix(" %")) for row in measured[1:]}
    assert accuracies["masked"] == pytest.approx(accuracies["federated"], abs=0.6), "masks cost no accuracy"
    apart = re.search(r"within (\d)e-(\d+)\.", printed)
    assert apart is not None
    assert int(apart[2]) >= 5


def test_faces(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    printed = run("faces", capsys, "--out", str(tmp_path))
    plain, masked, noised = (int(count) for count in re.findall(r"(\d+) of 10 recognised", printed))
    assert plain == 10, "the attack works where nothing defends"
    assert max(masked, noised) <= 6, "guessing finds one of ten"
    assert (tmp_path / "faces.html").stat().st_size > 10_000


def test_own_loop(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("own_loop", capsys)
    right = percent(printed, r"(\d+\.\d) % right")
    assert len(right) == 2
    assert min(right) > 75
    engine, server = (
        percent(printed, r"epsilon (\d\.\d\d) by the engine"),
        percent(printed, r"(\d\.\d\d) by the server"),
    )
    assert engine == server
    assert engine[0] <= 4.0
    assert "30 of 30 sums exact" in printed
    assert re.search(r"the library .* none$", printed, re.MULTILINE)
    assert re.search(r"a bug: half the noise variance .*variance$", printed, re.MULTILINE)

"""The demo, shortened: it trains, attacks, and writes a page and ledgers that can be read again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import secagg
from dp import PrivacyLedger
from secagg.cli import main
from secagg.demo import verdict

SCHEMA = json.loads((Path(secagg.__file__).parent / "schema.json").read_text())


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """`secagg demo --rounds 8 --json`, once for all tests; stdout must be one JSON object and nothing else."""
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        assert main(["demo", "--rounds", "8", "--out", str(out), "--json"]) == 0
    facts: dict[str, object] = json.loads("\n".join(printed))
    return facts


def test_documented_keys(short_run: dict[str, object]) -> None:
    assert sorted(short_run) == sorted(SCHEMA["demo"])
    assert set(short_run["accuracy"]) == {"secure", "fedavg", "pooled"}
    assert set(short_run["attack_psnr"]) == {"plain", "masked", "sum", "noised", "prior"}
    assert {"target", "spent", "ladder"} <= set(short_run["epsilon"])


def test_what_it_claims(short_run: dict[str, object]) -> None:
    assert short_run["clients"] == 20
    assert short_run["rounds"] == 8
    assert short_run["dropouts"] == 16
    assert short_run["exact_sum"] is True
    assert 0 < short_run["epsilon"]["spent"] <= short_run["epsilon"]["target"] == 4.0
    assert short_run["accuracy"]["secure"] > 0.5
    assert short_run["accuracy"]["fedavg"] > 0.9
    assert short_run["float32_bytes"] == 4 * 650
    assert short_run["bytes_up_per_client"] > 4 * 650


def test_the_attack_succeeds_on_the_plain_update_only(short_run: dict[str, object]) -> None:
    scores = short_run["attack_psnr"]
    assert scores["plain"] > 25
    assert scores["masked"] < scores["prior"]
    assert scores["noised"] < scores["prior"]


def test_report_and_ledgers(short_run: dict[str, object]) -> None:
    page = Path(str(short_run["report"])).read_text()
    assert not re.search(r"<script|https?://", page)
    assert page.count("data:image/png;base64,") == 6
    ledgers = sorted(Path(str(short_run["ledgers"])).iterdir())
    assert sum(path.name.endswith(".ledger") for path in ledgers) == 21
    with PrivacyLedger.open(Path(str(short_run["ledgers"])) / "server.ledger") as ledger:
        assert ledger.state().epsilon == short_run["epsilon"]["spent"]
        ledger.verify()


def test_verdicts() -> None:
    scores = {"plain": 60.0, "masked": 7.0, "sum": 16.0, "prior": 12.0}
    assert [verdict(name, scores) for name in scores] == [
        "recovered",
        "worse than guessing",
        "better than guessing",
        "the guess to beat",
    ]


def test_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--rounds", "2", "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    for part in (
        "2 sums were compared",
        "masked and noised",
        "the noised sum",
        "Privacy statement",
        "report ",
        "ledgers ",
    ):
        assert part in out
    assert "private federated training  2/2" in err
    assert "\x1b" not in out + err


def test_rounds_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--rounds", "0"]) == 2
    assert "--rounds" in capsys.readouterr().err

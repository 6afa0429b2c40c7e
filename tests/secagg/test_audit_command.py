"""`secagg audit`: exit codes, the documented JSON, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secagg import audit, audit_defects
from secagg.cli import DONE, FINDING, USAGE, main

OPTIONS = [
    "audit", "--dimension", "40", "--clients", "6", "--max-dropouts", "1", "--max-colluders", "1", "--unit", "client",
    "--clip-norm", "1", "--epsilon", "4", "--delta", "1e-5", "--rounds", "1", "--trials", "200",
]  # fmt: skip
SCHEMA = json.loads((Path(audit.__file__).parent / "schema.json").read_text())["audit"]


def test_the_code_as_it_is_passes_and_the_page_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPTIONS, "--json", "--out", str(tmp_path)]) == DONE
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == SCHEMA
    assert facts["passed"] is True
    assert facts["audit"]["checks"]["epsilon"]["measured"] <= facts["audit"]["claimed"]
    assert {one["name"] for one in facts["defects"]} == {d.name for d in audit_defects.DEFECTS if not d.records}
    assert all(one["found"] for one in facts["defects"])
    page = (tmp_path / "report.html").read_text()
    assert facts["report"] == str(tmp_path / "report.html")
    assert "No check disproves the claim" in page
    assert "no clipping" in page
    assert json.loads((tmp_path / "report.json").read_text())["audit"]["trials"] == 200


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPTIONS, "--no-defects"]) == DONE
    printed = capsys.readouterr().out
    assert "sensitivity" in printed
    assert "bug on purpose" not in printed
    assert "Clopper-Pearson" in printed


def test_a_bug_in_the_path_is_a_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bug = next(defect for defect in audit_defects.DEFECTS if defect.name == "no clipping")
    original = audit.audit_privacy
    monkeypatch.setattr(audit, "audit_privacy", lambda config, **other: original(config, **{"path": bug.path} | other))
    assert main([*OPTIONS, "--no-defects"]) == FINDING
    assert "does not keep its claim: epsilon, sensitivity failed" in capsys.readouterr().out


def test_an_audit_that_misses_a_bug_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    harmless = audit_defects.Defect(name="nothing at all", path=audit.honest_path, detector="variance")
    monkeypatch.setattr(audit_defects, "DEFECTS", (harmless,))
    assert main(OPTIONS) == FINDING
    assert "too weak here: it did not find nothing at all" in capsys.readouterr().out


def test_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPTIONS[:-1], "20"]) == USAGE
    assert main([*OPTIONS[:-2], "--unit", "none", "--epsilon", "4"]) == USAGE
    assert "secagg:" in capsys.readouterr().err

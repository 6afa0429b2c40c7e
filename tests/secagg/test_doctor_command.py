"""`secagg doctor` finds what would go wrong, says what to do, and tells problems from notes."""

from __future__ import annotations

import json
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest

from secagg import cli, doctor_command
from secagg.cli import main
from secagg.datasets import real
from secagg.doctor_command import NOTE, OK, PROBLEM, Finding, examine

SCHEMA = json.loads((Path(cli.__file__).parent / "schema.json").read_text())["doctor"]


def named(findings: list[Finding], name: str) -> list[Finding]:
    return [finding for finding in findings if finding.name == name]


def test_json_is_one_object_with_the_documented_keys(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert list(facts) == SCHEMA
    assert captured.err == ""
    assert facts["healthy"] is True
    assert all(set(one) == {field.name for field in fields(Finding)} for one in facts["findings"])
    assert {one["status"] for one in facts["findings"]} <= {OK, NOTE}
    names = [one["name"] for one in facts["findings"]]
    assert {"python", "cryptography", "ML-KEM-768", "masking", "ledger on disk", "data: thyroid"} <= set(names)


@pytest.mark.parametrize("path", ["dp.py", "protocols/__init__.py", "torch.py"])
def test_a_shadowed_name_is_a_problem(
    path: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).touch()
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert path in printed
    assert "rename it" in printed
    assert "Problems: shadowed name." in printed


def test_our_own_checkout_shadows_nothing() -> None:
    [finding] = named(examine(Path(cli.__file__).parents[1]), "shadowed names")
    assert finding.status == OK


def test_absent_and_altered_data_are_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "_THYROID", (*real._THYROID[:2], "0" * 16))
    monkeypatch.setattr(real, "_MNIST", ("a-package-that-is-not-there", *real._MNIST[1:]))
    findings = examine(tmp_path)
    [altered], [absent] = named(findings, "data: thyroid"), named(findings, "data: mnist")
    assert (altered.status, altered.value) == (NOTE, "differs from the known copy")
    assert "SHA-256" in altered.advice
    assert (absent.status, absent.value) == (NOTE, "not installed")
    assert "secagg[data]" in absent.advice


def test_an_extra_may_be_missing_and_a_dependency_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor_command, "DISTRIBUTIONS", {"jinja2": "a-package-that-is-not-there", "rich": "nor-is-this"}
    )
    findings = examine(tmp_path)
    [extra], [dependency] = named(findings, "jinja2"), named(findings, "rich")
    assert (extra.status, extra.advice) == (NOTE, "pip install 'secagg[report]'")
    assert (dependency.status, dependency.advice) == (PROBLEM, "pip install rich")


def test_a_disk_that_keeps_no_ledger_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    [finding] = named(examine(tmp_path), "ledger on disk")
    assert finding.status == PROBLEM
    assert "missing" in finding.value

"""The command line: `plan` says what the configuration says, and every failure has its exit code and one line."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import secagg
from secagg import (
    AggregationConfig,
    BudgetExceededError,
    CapacityError,
    InconsistentViewError,
    LedgerError,
    PolicyRefusal,
    TooFewClientsError,
    cli,
)
from secagg.cli import main

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "secagg" / "schema.json").read_text())
SIZES = {"dimension": 100, "clients": 20, "max_dropouts": 5, "max_colluders": 2}
UNITS = {
    "none": {"clip_norm": 1.5},
    "client": {"clip_norm": 1.5, "epsilon": 4.0, "delta": 1e-6, "rounds": 3},
    "record": {"clip_norm": 1.5, "epsilon": 4.0, "delta": 1e-6, "rounds": 3, "sampling_rate": 0.125, "records": 800},
}


def options(unit: str, /, **changes: object) -> list[str]:
    """Arguments of `plan` for a unit; None leaves one out."""
    values = {**SIZES, "unit": unit, **UNITS[unit], **changes}
    flags = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items() if value is not None]
    return ["plan", *(word for flag in flags for word in flag)]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A fresh process, as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "secagg", *arguments], cwd=ROOT, capture_output=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def toml(folder: Path, text: str) -> str:
    path = folder / "agreed.toml"
    path.write_text(text)
    return str(path)


def test_an_adaptive_clip_norm_comes_from_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sizes = "clients = 20\nmax_dropouts = 5\nmax_colluders = 2\n"
    budget = "epsilon = 4.0\ndelta = 1e-6\nrounds = 3\n[privacy.clip_norm]\ninitial = 1.5\n"
    path = toml(tmp_path, f'kind = "cross_silo"\n{sizes}[privacy]\nunit = "client"\n{budget}')
    assert main(["plan", "--dimension", "100", "--config", path, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [key for key in SCHEMA["plan"] if key in facts] == list(facts)
    assert facts["clip_norm"] == 1.5
    assert 0 < facts["indicator"] <= 0.25
    assert facts["count_stddev"] > 0


@pytest.mark.parametrize("unit", UNITS)
class TestPlan:
    def test_json_is_one_object_with_the_documented_keys(self, unit: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*options(unit), "--json"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        facts = json.loads(captured.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        documented = SCHEMA["plan"]
        assert [key for key in documented if key in facts] == list(facts)  # in the documented order
        missing = set(documented) - set(facts) - {"indicator", "count_stddev"}
        assert (
            missing
            == {
                "record": set(),
                "client": {"denominator"},
                "none": {
                    "denominator",
                    "noise_law",
                    "dropout_noise",
                    "share_stddev",
                    "noise_multiplier",
                    "ladder",
                    "expected_relative_error",
                },
            }[unit]
        )
        assert facts["schema"] == "secagg/plan/1"
        assert facts["version"] == secagg.__version__

    def test_values_are_those_of_the_configuration(self, unit: str, capsys: pytest.CaptureFixture[str]) -> None:
        main([*options(unit), "--json"])
        facts = json.loads(capsys.readouterr().out)
        config = AggregationConfig.cross_silo(
            like={"model": np.zeros(100, np.float32)}, clients=20, max_dropouts=5, max_colluders=2,
            privacy=secagg.privacy_unit({"unit": unit, **UNITS[unit]}),
        )  # fmt: skip
        for name in (
            "clients",
            "max_dropouts",
            "max_colluders",
            "threshold",
            "degree",
            "min_survivors",
            "modulus_bits",
        ):
            assert facts[name] == getattr(config, name)
        assert facts["dimension"] == 100
        assert facts["config_digest"] == config.digest().hex()
        assert facts["int_bound"] == config.encoder.int_bound
        assert facts["upload_bytes"] == config.upload_bytes
        assert (facts["unit"], facts["adjacency"]) == (unit, config.privacy.adjacency)
        assert facts["clip_norm"] == 1.5
        for name in ("delta", "rounds"):
            assert facts[name] == getattr(config.privacy, name, None)
        assert facts["epsilon"] == ("inf" if unit == "none" else 4.0)
        ladder = config.ladder()
        if ladder is not None:
            assert facts["ladder"] == ladder.to_dict()
        assert set(facts["reasons"]) == {line.name for line in config.explain()}

    def test_a_file_says_the_same(self, unit: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        main([*options(unit), "--json"])
        from_options = capsys.readouterr().out
        top = "".join(f"{name} = {value}\n" for name, value in SIZES.items() if name != "dimension")
        unit_table = "".join(f"{name} = {value}\n" for name, value in UNITS[unit].items())
        path = toml(tmp_path, f'kind = "cross_silo"\n{top}[privacy]\nunit = "{unit}"\n{unit_table}')
        assert main(["plan", "--dimension", "100", "--config", path, "--json"]) == 0
        assert capsys.readouterr().out == from_options

    def test_the_table_has_every_number_and_reason(self, unit: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(options(unit)) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        words = " ".join(captured.out.split())
        assert main([*options(unit), "--json"]) == 0
        for name, reason in json.loads(capsys.readouterr().out)["reasons"].items():
            assert name in words
            assert reason.split(" (")[0] in words
        assert "\x1b" not in captured.out


class TestWrongUse:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"dimension": 0}, "--dimension must be at least 1"),
            ({"dimension": 10**10}, "int_bound must be"),
            ({"dimension": 10**30}, ""),
            ({"clients": None, "max_colluders": None}, "--clients, --max-colluders"),
            ({"clients": 1}, "2 to 100"),
            ({"clients": -3}, "2 to 100"),
            ({"max_dropouts": 19}, "max_dropouts up to"),
            ({"max_dropouts": -1}, "max_dropouts must be"),
            ({"max_colluders": -1}, "max_colluders must be"),
            ({"modulus_bits": 16, "dimension": 10**7}, "16 bits cannot hold the sum: 17 are needed"),
            ({"modulus_bits": 20}, "modulus_bits must be one of"),
            ({"epsilon": "nan"}, "epsilon must be finite"),
            ({"epsilon": "inf"}, "epsilon must be finite"),
            ({"epsilon": 1e-9}, "int_bound"),
            ({"delta": 0}, "delta must be in"),
            ({"delta": None}, "delta"),
            ({"rounds": 0}, "rounds"),
            ({"clip_norm": "-1"}, "clip_norm must be finite"),
            ({"records": 100}, "records"),
        ],
    )
    def test_is_exit_code_2_with_one_line(
        self, changes: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for extra in ([], ["--json"]):
            assert main([*options("client", **changes), *extra]) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.startswith("secagg: ")
            assert captured.err.count("\n") == 1
            assert re.search(message, captured.err)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["plan"],
            ["nonsense"],
            [],
            ["plan", "--dimension", "x"],
            options("none", unit="people"),
            ["plan", "--nonsense"],
        ],
    )
    def test_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "usage: secagg" in captured.err

    @pytest.mark.parametrize(
        "text",
        [
            "kind = ",
            'kind = ["cross_silo"]',
            'kind = "cross_silo"\nprivacy = 3',
            'kind = "cross_silo"\n[privacy]\nunit = [1]',
        ],
    )
    def test_files(self, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plan", "--dimension", "5", "--config", toml(tmp_path, text), "--json"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1

    def test_a_missing_file(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert main(["plan", "--dimension", "5", "--config", str(tmp_path / "none.toml")]) == 2
        assert "none.toml" in capsys.readouterr().err

    def test_a_file_in_another_encoding(self, tmp_path: Path) -> None:
        path = tmp_path / "agreed.toml"
        path.write_bytes('kind = "cross_silo"\napplication = "hôpital"\n'.encode("latin-1"))
        done = run("plan", "--dimension", "5", "--config", str(path), "--json")
        assert done.returncode == 2
        assert done.stdout == b""
        assert done.stderr.count(b"\n") == 1
        assert b"agreed.toml is not a UTF-8 TOML file" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BudgetExceededError("no more"), 5),
        (PolicyRefusal("never"), 5),
        (TooFewClientsError("alone"), 4),
        (InconsistentViewError("two views"), 4),
        (ImportError("needs PyTorch: pip install 'secagg[torch]'"), 3),
        (CapacityError("too small"), 2),
        (LedgerError("damaged"), 2),
        (ValueError("wrong"), 2),
        (PermissionError(13, "denied", "file"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What any command may raise; `plan` is only the one at hand."""

    def fail(_options: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_plan", fail)
    assert main(["plan", "--dimension", "5"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert str(error) in captured.err


class TestProcess:
    def test_output_to_a_pipe_has_no_escape_codes_and_no_cut_lines(self) -> None:
        done = run(*options("record"), COLUMNS="40", TERM="xterm-256color")
        assert done.returncode == 0, done.stderr
        assert done.stderr == b""
        assert b"\x1b" not in done.stdout
        assert b"public: sampling_rate x records" in done.stdout

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    def test_any_terminal_encoding(self, encoding: str) -> None:
        done = run(*options("none"), PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert "upload_bytes" in done.stdout.decode(encoding)

    @pytest.mark.parametrize(
        "arguments", [["--help"], ["plan", "--help"], ["demo", "--help"], ["--version"], [*options("client"), "--json"]]
    )
    def test_works_where_the_heavy_packages_are_not_installed(self, arguments: list[str]) -> None:
        program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "opacus", "scipy", "sklearn", "matplotlib", "jinja2", "flwr"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from secagg.cli import main
sys.exit(main(sys.argv[1:]))
"""
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
        assert done.stderr == ""

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["--version"])
        assert caught.value.code == 0
        assert capsys.readouterr().out.strip() == f"secagg {secagg.__version__}"


def test_infinity_is_text_and_stays_readable() -> None:
    data = {"a": [math.inf, -math.inf, 1.0], "b": {"c": (math.nan, 2)}, 3: None}
    assert cli.finite(data) == {"a": ["inf", "-inf", 1.0], "b": {"c": ["nan", 2]}, "3": None}
    assert [cli.readable(value) for value in (1.23456, 1234567, "text", math.inf)] == [
        "1.235",
        "1,234,567",
        "text",
        "inf",
    ]

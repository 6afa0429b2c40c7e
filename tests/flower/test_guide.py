"""The guide stays true: its diff is the example, its code runs, its commands exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from secagg.adapters.flower import Agreement, Node, SecAggGrid, SecAggMod, enrol, read_roster
from secagg.adapters.flower.agreement import KEYS, SERVER_KEYS
from tests.flower.apps import LocalGrid, task

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "flower.md").read_text()
APP = ROOT / "examples" / "flower_app"
CONFIG = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
MOST_CHANGED_LINES = 10


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def changes() -> dict[str, tuple[list[str], list[str]]]:
    """By file: lines that the diff takes out, lines that it puts in."""
    (diff,) = blocks("diff")
    files: dict[str, tuple[list[str], list[str]]] = {}
    for line in diff.splitlines():
        if line.startswith("--- "):
            out, into = files.setdefault(line[4:], ([], []))
        else:
            (out if line[0] == "-" else into).append(line[1:])
    return files


def plain_source(name: str) -> str:
    """The file without this library: the diff, applied backwards."""
    out, into = changes()[name]
    replaced = dict(zip([line for line in into if "(mods=" in line or " grid=" in line], out, strict=True))
    lines = []
    for line in (APP / name).read_text().splitlines():
        if line in replaced:
            lines.append(replaced[line])
        elif line not in into:
            lines.append(line)
    return "\n".join(lines)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the example that can be imported, and is forgotten afterwards."""
    shutil.copytree(APP / "hospitals", tmp_path / "hospitals", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "hospitals"
    for name in [name for name in sys.modules if name.partition(".")[0] == "hospitals"]:
        del sys.modules[name]


def run(server: ServerApp, client: ModuleType, config: dict[str, object], nodes: int, **node_config: object) -> None:
    grid = LocalGrid(lambda: client.app, nodes, node_config)
    for context in grid.contexts.values():
        for name, value in config.items():
            kind = {bool: "bool", int: "sint64", float: "double", str: "string"}[type(value)]
            setattr(context.run_config[name], kind, value)
    with task():
        server(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config))  # type: ignore[arg-type]


def test_the_diff_is_the_example() -> None:
    changed = 0
    for name, (out, into) in changes().items():
        lines = (APP / name).read_text().splitlines()
        for line in into:
            assert lines.count(line) == 1, line
        for line in out:
            assert line not in lines, line
        changed += len(out) + len(into)
        assert "secagg" not in plain_source(name).replace("SecAggGrid", "secagg").split('"""', 2)[2]
    assert 0 < changed <= MOST_CHANGED_LINES


def test_the_plain_app_runs_without_this_library(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in changes():
        (app.parent / name).write_text(plain_source(name))
    server, client = import_module("hospitals.server_app"), import_module("hospitals.client_app")
    run(server.app, client, CONFIG, nodes=4)
    assert "Privacy statement" not in capsys.readouterr().out


def test_the_example_learns_and_states_its_privacy(
    app: Path, nodes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the five rounds, on all twenty hospitals; the simulated nodes enrol themselves for the run."""
    monkeypatch.setenv("FLWR_HOME", str(nodes))
    server, client = import_module("hospitals.server_app"), import_module("hospitals.client_app")
    seen = []
    statement = SecAggGrid.statement
    monkeypatch.setattr(SecAggGrid, "statement", lambda self: seen.append(self) or statement(self))
    run(server.app, client, {**CONFIG, "num-server-rounds": 2}, nodes=20)
    (secure,) = seen
    assert [len(result.survivors) for result in secure.results] == [20, 20]
    assert secure.results[-1].epsilon < CONFIG["secagg-epsilon"]
    assert "budget      epsilon 8 at delta 1e-05 over 5 rounds" in capsys.readouterr().out


def test_the_settings_of_the_guide_are_those_of_the_example() -> None:
    (settings,) = (tomllib.loads(block) for block in blocks("toml"))
    assert settings.items() <= CONFIG.items()
    assert Agreement.of(settings) == Agreement.of(CONFIG)
    named = set(re.findall(r"`(secagg-[a-z-]+)`", GUIDE)) | set(settings)
    assert named >= KEYS | SERVER_KEYS


def test_the_guides_code_enrols_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = blocks("python")
    exec(compile(first, "flower.md", "exec"), {})
    others = {client: enrol(tmp_path / f"other-{client}", client) for client in (1, 2, 4)}
    own = read_identity(tmp_path / "secagg-node")
    settings = {**CONFIG, "secagg-clients": 4, "secagg-max-dropouts": 1, "secagg-max-colluders": 0}
    exec(compile(second, "flower.md", "exec"), {"PUBLIC_KEYS": {**others, 3: own}, "SETTINGS": settings})
    with Node("secagg-node") as node:
        assert node.client_id == 3
        assert node.roster[node.client_id] == own
        assert node.agreement == Agreement.of(settings)
    assert len(read_roster("secagg-node/roster.toml")) == 4


def read_identity(directory: Path) -> bytes:
    from protocols import Identity

    data = tomllib.loads((directory / "identity.toml").read_text())
    return Identity(bytes.fromhex(data["private"])).public


@pytest.mark.slow
def test_the_commands_exist() -> None:
    """Every option in the guide's commands is one that the program knows."""
    for line in filter(None, "".join(blocks("console")).splitlines()):
        words = re.sub(r"'[^']*'|\"[^\"]*\"", "", line.removeprefix("$ ")).split()
        if words[0] in ("flower-superlink", "flower-supernode", "flwr"):
            command = words[:2] if words[0] == "flwr" else words[:1]
            shown = subprocess.run(
                [Path(sys.executable).with_name(command[0]), *command[1:], "--help"],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "COLUMNS": "200"},
            ).stdout
            for option in [word for word in words if word.startswith("--")]:
                assert option in shown, (command, option)


def test_without_flower_the_extra_is_named() -> None:
    program = "import sys; sys.modules['flwr'] = None; import secagg.adapters.flower"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stderr.strip().endswith("ImportError: Flower apps need Flower: pip install 'secagg[flower]'")


def test_the_mod_survives_a_pickle() -> None:
    """Ray sends the app to its workers."""
    from ray import cloudpickle

    copy = cloudpickle.loads(cloudpickle.dumps(SecAggMod(simulation="/somewhere")))
    assert isinstance(copy, SecAggMod)


def test_the_example_models_what_it_says(app: Path) -> None:
    task_module = import_module("hospitals.task")
    features, labels, held_out = task_module.load_data()
    assert np.abs(features).max() <= 1
    shares = [task_module.load_hospital(number, 20) for number in range(20)]
    assert sum(len(share[1]) for share in shares) == len(labels) - held_out.sum()

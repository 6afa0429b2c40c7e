"""The shape of the code: who imports whom, what never happens, and what `import secagg` may cost."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import dp
import protocols
import secagg

ROOT = Path(secagg.__file__).parents[1]
PACKAGES = ("secagg", "dp", "protocols")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = (
    "torch",
    "scipy",
    "opacus",
    "flwr",
    "ray",
    "sklearn",
    "matplotlib",
    "jinja2",
    "rich",
    "dp_accounting",
    "psycopg",
)
MOST_LINES = 600


def python(program: str, *, cwd: Path = ROOT, path: str = "") -> subprocess.CompletedProcess[str]:
    """A fresh interpreter; `path` goes to the front of its module search path."""
    environment = {**os.environ, "PYTHONPATH": path} if path else dict(os.environ)
    return subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=False, env=environment
    )


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that some line of a module imports from outside its package, deferred imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PACKAGES)
    assert len(MODULES) > 30


class TestImports:
    @pytest.mark.parametrize("package", ["secagg", "dp", "protocols", "secagg.cli", "secagg.simulation"])
    def test_are_light(self, package: str) -> None:
        done = python(f"import json, sys, {package}; print(json.dumps(sorted(sys.modules)))")
        loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
        assert package.partition(".")[0] in loaded
        assert loaded.isdisjoint(HEAVY), loaded & set(HEAVY)
        if package == "protocols":
            assert loaded.isdisjoint({"secagg", "dp", "sqlite3"})
        if package == "dp":
            assert loaded.isdisjoint({"secagg", "protocols", "msgspec"})

    def test_a_whole_round_stays_light(self) -> None:
        done = python(
            "import json, sys, numpy as np, secagg\n"
            "config = secagg.AggregationConfig.cross_silo(like={'w': np.zeros(3)}, clients=4, max_dropouts=1,"
            " max_colluders=1, privacy=secagg.ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=1))\n"
            "secagg.simulate({i: {'w': np.zeros(3)} for i in range(1, 5)}, config, drop={2})\n"
            "print(json.dumps(sorted(sys.modules)))"
        )
        assert done.returncode == 0, done.stderr
        assert {name.partition(".")[0] for name in json.loads(done.stdout)}.isdisjoint(HEAVY)

    def test_contracts_are_kept(self) -> None:
        """The contracts themselves stand in pyproject.toml."""
        lint = Path(sys.executable).with_name("lint-imports")
        done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        assert f"Contracts: {len(contracts)} kept, 0 broken" in done.stdout
        assert len(contracts) >= 2

    @pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
    def test_no_weak_randomness_and_no_code_from_data(self, path: Path) -> None:
        forbidden = ("random", "numpy.random", "pickle", "dill", "marshal", "shelve")
        tree = ast.parse(path.read_text())
        for name in imports(tree):
            assert not any(within(name, package) for package in forbidden), name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                assert not text.startswith(("np.random", "numpy.random", "random.")), text
                assert text != "torch.manual_seed", text
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, ast.unparse(node)

    @pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
    def test_siblings_know_each_other_through_the_door_only(self, path: Path) -> None:
        package = path.relative_to(ROOT).parts[0]
        foreign = {"secagg": (), "dp": ("secagg", "protocols", "dp"), "protocols": ("secagg", "dp", "protocols")}[
            package
        ]
        for name in (*imports(ast.parse(path.read_text())),):
            # Inside a leaf only relative imports: it can be moved or vendored as it is.
            assert not any(within(name, other) for other in foreign), name
            # Opacus installs top-level packages of these names.
            assert not any(within(name, other) for other in ("benchmarks", "examples", "tests")), name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
class TestModules:
    def test_are_small(self, path: Path) -> None:
        assert len(path.read_text().splitlines()) <= MOST_LINES

    def test_say_what_they_are(self, path: Path) -> None:
        assert ast.get_docstring(ast.parse(path.read_text()))

    def test_check_with_errors_that_optimisation_cannot_remove(self, path: Path) -> None:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert"
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"line {node.lineno}: bare except"
                assert ast.unparse(node.type) not in {"Exception", "BaseException"}, f"line {node.lineno}"

    def test_print_only_where_people_look(self, path: Path) -> None:
        if path.name in {"cli.py", "terminal.py", "demo.py"} or path.name.endswith("_command.py"):
            return
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"line {node.lineno}: print"


class TestSiblings:
    @pytest.mark.parametrize("name", ["dp", "protocols"])
    @pytest.mark.parametrize("content", ["", "__secagg_version__ = '0.0.1'\n"])
    def test_a_foreign_package_is_named(self, name: str, content: str, tmp_path: Path) -> None:
        """A user's own dp.py next to a script comes first on the path."""
        foreign = tmp_path / f"{name}.py"
        foreign.write_text(content)
        done = python("import secagg", cwd=tmp_path, path=f"{tmp_path}{os.pathsep}{ROOT}")
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError")
        assert str(foreign) in last
        assert "rename or remove" in last

    def test_versions_are_one(self) -> None:
        declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        assert secagg.__version__ == dp.__secagg_version__ == protocols.__secagg_version__ == declared


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_published(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_the_command_is_installed() -> None:
    (command,) = [script for script in entry_points(group="console_scripts") if script.name == "secagg"]
    assert command.load() is secagg.cli.main  # type: ignore[attr-defined]

"""Documents stay true: code blocks run as printed, generated parts equal the code (`UPDATE_DOCS=1` rewrites them)."""

from __future__ import annotations

import os
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from protocols.session import CLIENT_TRANSITIONS, SERVER_TRANSITIONS, TransitionTable

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/flower.md")
PYTHON_BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)


def phase_diagram() -> str:
    def draw(party: str, table: TransitionTable) -> list[str]:
        lines = [f"  state {party} {{"]
        for (start, trigger), end in table.items():
            lines.append(f"    {party}_{start.value} --> {party}_{end.value}: {trigger}")
        phases = dict.fromkeys(phase for (start, _), end in table.items() for phase in (start, end))
        lines += [f"    {party}_{phase.value}: {phase.value}" for phase in phases]
        return [*lines, "  }"]

    body = ["stateDiagram-v2", *draw("Client", CLIENT_TRANSITIONS), *draw("Server", SERVER_TRANSITIONS)]
    return "\n".join(["", "```mermaid", *body, "```", ""])


def test_phase_diagram_is_drawn_from_the_tables() -> None:
    path = ROOT / "ARCHITECTURE.md"
    text = path.read_text()
    start, end = text.index("<!-- phases -->") + len("<!-- phases -->"), text.index("<!-- /phases -->")
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(text[:start] + phase_diagram() + text[end:])
        text = path.read_text()
        end = text.index("<!-- /phases -->")
    assert text[start:end] == phase_diagram()


def test_readme_code_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run in order in one namespace, as a reader would; a `text` block right after one is its output."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    blocks = PYTHON_BLOCK.findall((ROOT / "README.md").read_text())
    assert blocks
    for code, expected in blocks:
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), namespace)
        if expected:
            assert printed.getvalue().strip() == expected.strip()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_between_documents_exist(name: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text()):
        assert (ROOT / name).parent.joinpath(target).exists(), target


def test_tests_named_in_the_architecture_exist() -> None:
    for target in re.findall(r"`(tests/[\w/]+(?:\.py)?)/?`", (ROOT / "ARCHITECTURE.md").read_text()):
        assert (ROOT / target).exists(), target

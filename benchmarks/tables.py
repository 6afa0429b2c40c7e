"""Writes TABLES.md from results/*.json. Numbers in it are never typed; a test holds it to the files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .harness import RESULTS, say
from .markdown import count as _count
from .markdown import table as _table
from .side_by_side import client_path_table, peers_table, with_summary

TABLES = Path(__file__).parent / "TABLES.md"
README = Path(__file__).parent.parent / "README.md"
Facts = dict[str, Any]  # one file of results

HEAD = """# Measurements

Generated from `results/*.json` by `python -m benchmarks tables`: do not edit. [README.md](README.md) says what is
measured and how. Times are CPU seconds, sizes are bytes unless they say otherwise, 1 MB is 10^6 bytes.
"""


def add_command(commands: Any) -> None:
    """Registers `tables`."""
    parser = commands.add_parser("tables", help="write TABLES.md from results/*.json")
    parser.set_defaults(command=_command)


def _command(_options: argparse.Namespace) -> int:
    results = load(RESULTS)
    TABLES.write_text(render(results))
    README.write_text(with_summary(README.read_text(), results))
    say(f"wrote {TABLES} and the measurements in {README}")
    return 0


def load(folder: Path) -> list[Facts]:
    """All results, ordered by the names of their files."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def render(results: Iterable[Facts]) -> str:
    """The whole document.

    Raises:
        ValueError: a result is of no benchmark that has a table.
    """
    sections: dict[str, tuple[str, Callable[[Sequence[Facts]], list[str]]]] = {
        "benchmarks/speed/1": ("Speed: one round", _speed),
        "benchmarks/speed-one-shot/1": ("Speed: one round of the experimental one-shot protocol", _speed_one_shot),
        "benchmarks/sizes/1": ("Sizes: one client, one round without dropouts", _sizes),
        "benchmarks/sizes-one-shot/1": (
            "Sizes: one client and one committee member, one round of the experimental one-shot protocol",
            _sizes_one_shot,
        ),
        "benchmarks/scaling/1": ("Scaling: growth with the number of clients", _scaling),
        "benchmarks/heterogeneity/1": (
            "Heterogeneity: strategies on clients that are more and less alike",
            _heterogeneity,
        ),
        "benchmarks/communication/1": ("Communication: accuracy against bytes", _communication),
        "benchmarks/record_level/1": ("Record level: one DP-SGD step through Opacus", _record_level),
        "benchmarks/client_path/1": (
            "Client path: all that a client computes, beside local training",
            client_path_table,
        ),
        "benchmarks/peers/1": ("Peers: other projects' sums beside ours", peers_table),
        "benchmarks/utility/1": ("Utility: what privacy of a record costs in accuracy", _utility),
    }
    found: dict[str, list[Facts]] = {schema: [] for schema in sections}
    for facts in results:
        if facts["schema"] not in found:
            raise ValueError(f"there is no table for {facts['schema']!r}, made by {facts.get('command')!r}")
        found[facts["schema"]].append(facts)
    lines = [HEAD]
    for schema, (title, table) in sections.items():
        if found[schema]:
            lines += [f"## {title}", "", *table(found[schema]), "", *_origin(found[schema]), ""]
    return "\n".join(lines)


def _speed(results: Sequence[Facts]) -> list[str]:
    head = (
        "clients", "degree", "dropouts", "coordinates", "bits", "suite", "client: mask", "mask / floor", "client: all",
        "server: unmask", "unmask / floor", "server: all", "of it verifying", "server peak, MB", "peak / vector",
        "upload, MB", "threads", "unmask: wall",
    )  # fmt: skip
    rows = []
    for facts in results:
        client, server = facts["client"], facts["server"]
        rows.append((
            _count(facts["clients"]), _count(facts["degree"]), _count(facts["dropouts"]), _count(facts["dimension"]),
            str(facts["bits"]), str(facts["suite"]),
            f"{client['mask_s']:.4f}", f"{client['mask_over_floor']:.2f}", f"{client['total_s']:.4f}",
            f"{server['unmask_s']:.3f}", f"{server['unmask_over_floor']:.2f}", f"{server['total_s']:.3f}",
            f"{server['verify_s']:.3f}", f"{server['peak_bytes'] / 1e6:.2f}", f"{server['peak_over_vector']:.1f}",
            f"{facts['upload_bytes'] / 1e6:.3f}", str(facts["threads"]), f"{server['unmask_wall_s']:.3f}",
        ))  # fmt: skip
    return _table(head, rows)


def _speed_one_shot(results: Sequence[Facts]) -> list[str]:
    head = (
        "clients", "members", "threshold", "coordinates", "bits", "suite", "dropouts", "client", "member",
        "server: all", "of it verifying", "server: unmask", "server peak, MB", "upload, MB",
    )  # fmt: skip
    rows = []
    for facts in results:
        server = facts["server"]
        rows.append((
            *(
                _count(facts[name])
                for name in ("clients", "members", "threshold", "dimension", "bits", "suite", "dropouts")
            ),
            f"{facts['client']['total_s']:.4f}", f"{facts['member']['total_s']:.4f}", f"{server['total_s']:.3f}",
            f"{server['verify_s']:.3f}", f"{server['unmask_s']:.4f}", f"{server['peak_bytes'] / 1e6:.2f}",
            f"{facts['upload_bytes'] / 1e6:.3f}",
        ))  # fmt: skip
    return _table(head, rows)


def _sizes(results: Sequence[Facts]) -> list[str]:
    head = ("", *(_shape(facts) for facts in results))
    rows = [
        (f"{arrow} {message}", *(_count(facts[way][message]) for facts in results))
        for way, arrow in (("upload", "↑"), ("download", "↓"))
        for message in results[0][way]
    ]
    rows.append(("upload above b/32 of float32", *(f"{facts['overhead_percent']:.2f} %" for facts in results)))
    rows.append(("upload over float32", *(f"{facts['ratio_to_float32']:.3f}×" for facts in results)))
    return _table(head, rows)


def _sizes_one_shot(results: Sequence[Facts]) -> list[str]:
    head = (
        "",
        *(
            f"n = {_count(facts['clients'])}, m = {facts['members']}, t = {facts['threshold']}, "
            f"d = {_count(facts['dimension'])}, suite {facts['suite']}"
            for facts in results
        ),
    )
    rows = [
        (f"{arrow} {message}", *(_count(facts[way][message]) for facts in results))
        for way, arrow in (
            ("upload", "client ↑"),
            ("download", "client ↓"),
            ("member_upload", "member ↑"),
            ("member_download", "member ↓"),
        )
        for message in results[0][way]
    ]
    rows.append(("client's upload above float32", *(f"{facts['overhead_percent']:.2f} %" for facts in results)))
    return _table(head, rows)


def _shape(facts: Facts) -> str:
    return (
        f"n = {_count(facts['clients'])}, k = {facts['degree']}, d = {_count(facts['dimension'])}, "
        f"{facts['bits']} bits, suite {facts['suite']}"
    )


def _scaling(results: Sequence[Facts]) -> list[str]:
    head = (
        "coordinates", "bits", "suite", "clients", "degree", "threshold", "dropouts", "client: all", "client: mask",
        "server: all", "server: unmask", "server peak, MB", "peak / pair, B", "round: wall", "all parties, MB",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for facts in results:
        shape = (_count(facts["dimension"]), str(facts["bits"]), str(facts["suite"]))
        for one in facts["rounds"]:
            client, server = one["client"], one["server"]
            rows.append((
                *shape, *(_count(one[name]) for name in ("clients", "degree", "threshold", "dropouts")),
                f"{client['total_s']:.4f}", f"{client['mask_s']:.4f}", f"{server['total_s']:.3f}",
                f"{server['unmask_s']:.3f}", f"{server['peak_bytes'] / 1e6:.2f}", f"{server['peak_per_pair']:.0f}",
                f"{one['process']['wall_s']:.0f}", f"{one['process']['peak_bytes'] / 1e6:.0f}",
            ))  # fmt: skip
        slopes = facts["exponents"]
        rows.append((
            *shape, "growth", "", "", "", f"n^{slopes['client']:.2f}", "", f"n^{slopes['server']:.2f}", "",
            f"n^{slopes['server_peak']:.2f}", "", "", "",
        ))  # fmt: skip
    return _table(head, rows)


def _record_level(results: Sequence[Facts]) -> list[str]:
    head = (
        "model", "parameters", "batch", "step", "dtype", "without noise, ms", "over Opacus", "noise share, ms",
        "peak, MB",
    )  # fmt: skip
    names = {
        "hooks": "Opacus, hooks", "exact": "`exact` on hooks", "ghost": "Opacus, ghost", "sum": "`sum` on ghost",
    }  # fmt: skip
    rows = []
    for facts in results:
        for model in facts["models"]:
            ratios = {"exact": model["exact_over_hooks"], "sum": model["sum_over_ghost"]}
            for variant, name in names.items():
                step = model["steps"][variant]
                ours = variant in ratios
                rows.append((
                    model["model"], _count(model["parameters"]), str(model["batch"]), name, step["dtype"],
                    f"{1e3 * step['step_s']:.1f}", f"{ratios[variant]:.2f}" if ours else "",
                    f"{1e3 * step['noise_s']:.1f}" if ours else "", f"{step['peak_bytes'] / 1e6:.0f}",
                ))  # fmt: skip
    versions = dict.fromkeys(
        ", ".join(f"{name} {text}" for name, text in facts["versions"].items()) for facts in results
    )
    return [*_table(head, rows), "", *(f"With {text}." for text in versions)]


def _origin(results: Sequence[Facts]) -> list[str]:
    """The command of every result, and the machines they ran on."""
    lines = ["Made by", "", "```", *(facts["command"] for facts in results), "```", ""]
    for text in dict.fromkeys(_machine(facts["environment"]) for facts in results):
        lines.append(f"on {text}.")
    return lines


def _machine(environment: Facts) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return (
        f"{environment['processor']} ({environment['machine']}, {environment['cores']} cores), "
        f"Python {environment['python']}, {packages}, {environment['openssl']}"
    )


def _utility(results: Sequence[Facts]) -> list[str]:
    """For each task its baselines, and by epsilon the score of each kind of noise: mean and standard error."""

    def score(cell: Facts) -> str:
        return "refused" if "refused" in cell else f"{cell['mean']:.1f} ± {cell['se']:.1f}"

    def difference(row: Facts) -> str:
        gaps = (cell["difference"] for key, cell in row.items() if key.isdigit() and "refused" not in cell)
        gap = next(gaps, None)
        return "" if gap is None else f"{gap['mean']:+.2f} ± {gap['se']:.2f}"

    lines = []
    for facts in results:
        for name, task in facts["tasks"].items():
            widths = [key for key in next(iter(task["private"].values())) if key.isdigit()]
            lines += [
                f"**{name}**: {task['clients']} clients, {task['parameters']} parameters, {task['score']} in percent, "
                f"{task['seeds']} splits at epsilon 4. Without privacy: pooled {score(task['pooled'])}, FedAvg "
                f"{score(task['fedavg'])}, each client alone {score(task['alone'])}.",
                "",
                *_table(
                    ["epsilon", "central", *(f"{width} bits" for width in widths), "fewest bits − central", "local"],
                    [
                        [
                            target,
                            score(row["central"]),
                            *(score(row[key]) for key in widths),
                            difference(row),
                            score(row["local"]),
                        ]
                        for target, row in task["private"].items()
                    ],
                ),
                "",
            ]
    return lines[:-1]


def _heterogeneity(results: Sequence[Facts]) -> list[str]:
    """Own and global accuracy of each strategy by alpha."""
    lines = []
    for facts in results:
        alphas = list(facts["alphas"])
        lines += [
            f"{facts['clients']} clients, {facts['rounds']} rounds, {facts['seeds']} splits. Own accuracy / that of "
            "the common model, in percent; with personal heads the second is the mean over the clients' models.",
            "",
            *_table(
                ["strategy", *(f"alpha {alpha}" for alpha in alphas)],
                [
                    [
                        name,
                        *(
                            f"{_score(facts['alphas'][a][name]['own'])} / {_score(facts['alphas'][a][name]['global'])}"
                            for a in alphas
                        ),
                    ]
                    for name in facts["alphas"][alphas[0]]
                ],
            ),
        ]
    return lines


def _communication(results: Sequence[Facts]) -> list[str]:
    """Accuracy and bytes of each way."""
    return _table(
        ["way", "accuracy, %", "bytes sent by a client"],
        [
            [name, _score(way["accuracy"]), _count(way["bytes_up"])]
            for facts in results
            for name, way in facts["ways"].items()
        ],
    )


def _score(cell: Facts) -> str:
    return f"{cell['mean']:.1f} ± {cell['se']:.1f}"

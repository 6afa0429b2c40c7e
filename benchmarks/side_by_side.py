"""Tables of `peers` and `client_path`, and the few lines of them that stand in the README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .markdown import count, table

Facts = dict[str, Any]  # one file of results
MARKS = "<!-- measured -->\n", "<!-- /measured -->"  # around what is generated in the README


def client_path_table(results: Sequence[Facts]) -> list[str]:
    """For each result its parts, what they add up to beside training, and noise beside NumPy's."""
    lines = []
    for facts in results:
        epoch, noise, rates = facts["epoch"], facts["noise"], facts["rates"]
        parts = [
            (name, _ms(part["s"]), _ms(part["floor_s"]), f"{part['over_floor']:.2f}")
            for name, part in facts["parts"].items()
        ]
        lines += [
            f"{count(facts['clients'])} clients, degree {facts['degree']}, {count(facts['dimension'])} coordinates "
            f"of {facts['bits']} bits, {'rotated' if facts['rotation'] else 'not rotated'}, suite {facts['suite']}, "
            f"noise multiplier {facts['noise_multiplier']:.2f}; a copy moves {rates['copy_gb_per_s']:.0f} GB/s, "
            f"AES-256-CTR makes {rates['aes_gb_per_s']:.1f}.",
            "",
            *table(
                ["part", "ms", "floor, ms", "over floor"],
                [
                    *parts,
                    ("clip, rotate, encode, noise and ring in one call", _ms(facts["prepare_s"]), "", ""),
                    ("the round: keys, shares, mask, signatures", _ms(facts["protocol_s"]), "", ""),
                    ("**all that a client computes**", _ms(facts["total_s"]), "", ""),
                    ("a client's part of the server", _ms(facts["server_per_client_s"]), "", ""),
                ],
            ),
            "",
            f"A local epoch over {count(epoch['records'])} records in batches of {epoch['batch']}, "
            f"{count(epoch['parameters'])} parameters: {epoch['seconds']:.2f} s. Aggregation of that model, client "
            f"and server: {_ms(epoch['aggregation_s'])} ms, {epoch['percent']:.1f} % of it.",
            "",
            f"{count(noise['draws'])} draws of standard deviation {count(noise['stddev'])}: Skellam "
            f"{_ms(noise['skellam_s'])} ms, discrete Gaussian {_ms(noise['discrete_gaussian_s'])} ms; the difference "
            f"of two Poisson variables in NumPy {_ms(noise['numpy_poisson_s'])} ms, ratio "
            f"{noise['skellam_over_numpy']:.2f}.",
            "",
        ]
    return lines[:-1]


PROJECTS = {"float_sum": "NumPy", "flower": "Flower", "tenseal": "TenSEAL", "declearn": "declearn"}
OURS = {
    "complete, 32 bits": "pairwise, complete graph: masks integers, shares keys, signs, verifies, agrees on survivors",
    "sparse, 32 bits": "pairwise, sparse graph: the same",
    "sparse, 16 bits": "pairwise, sparse graph: the same",
    "one-shot": "one-shot: masks integers, shares keys to a committee, proves the shares, signs, verifies",
}


def peers_table(results: Sequence[Facts]) -> list[str]:
    """For each result everybody's numbers, ratios, and noise and steps beside those of their peers."""
    lines = []
    for facts in results:
        degree = facts["degree"]
        rows = []
        for row in facts["peers"]:
            name = f"{PROJECTS[row['peer']]} {row.get('version', '')}".rstrip()
            shape = f"{row['shape']['clients']}, {row['shape'].get('degree', '')}".rstrip(", ")
            if row["ran"]:
                numbers = (f"{row['client_s']:.4f}", f"{row['server_s']:.3f}", "", f"{row['upload_bytes'] / 1e6:.3f}")
            else:
                numbers = (f"not run: {row['reason']}", "", "", "")
            rows.append((name, row["what"], shape, *numbers))
        for row in facts["ours"]:
            k = facts["clients"] - 1 if row["name"].startswith("complete") else degree
            rows.append((
                f"secagg, {row['bits']} bits, suite {row['suite']}", OURS[row["name"]],
                f"{facts['clients']}" if row["name"] == "one-shot" else f"{facts['clients']}, {k}",
                f"{row['client_s']:.4f}", f"{row['server_s']:.3f}", f"{row['server_without_verify_s']:.3f}",
                f"{row['upload_bytes'] / 1e6:.3f}",
            ))  # fmt: skip
        ratios = [
            (
                row["peer"], f"{row['ours']}, suite {row['suite']}", _times(row["client"]), _times(row["server"]),
                _times(row["server_without_verify"]), _times(row["upload"]),
            )
            for row in facts["ratios"]
        ]  # fmt: skip
        lines += [
            f"{count(facts['dimension'])} coordinates. Of {facts['clients']} clients {facts['dropouts']} drop out "
            "after they shared keys; where no keys are shared, the clients in the table stay. Every sum was compared "
            "with the plain one.",
            "",
            *table(
                ["project", "what ran", "clients, degree", "client", "server", "without verifying", "upload, MB"],
                rows,
                words=3,
            ),
            "",
            "Theirs over ours:",
            "",
            *table(["peer", "ours", "client", "server", "server without verifying", "upload"], ratios, words=2),
            "",
            *_noise_and_step(facts),
        ]
    return lines[:-1]


def _noise_and_step(facts: Facts) -> list[str]:
    lines = []
    noise, step = facts["noise"], facts["step"]
    if noise is not None:
        peer = noise["peer"]
        theirs = f"OpenDP {peer['version']} {peer['seconds']:.3f} s" if peer["ran"] else f"OpenDP {peer['reason']}"
        lines += [
            f"{count(noise['draws'])} draws of standard deviation {noise['stddev']:,.0f}: discrete Gaussian, {theirs}, "
            f"ours {noise['discrete_gaussian_s']:.4f} s; Skellam, ours {noise['skellam_s']:.4f} s.",
            "",
        ]
    if step is not None:
        lines += [
            f"One DP-SGD step of {count(step['parameters'])} parameters, {step['batch']} records, without noise: "
            f"Opacus {step['version']} {step['opacus_s']:.3f} s; ours on its hooks, where every record is rounded and "
            f"checked in integers, {step['ours_s']:.3f} s. One noise share of ours: {step['ours_noise_s']:.4f} s.",
            "",
        ]
    return lines


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.3g}×"


def with_summary(text: str, results: Iterable[Facts]) -> str:
    """The README with its measurements, taken from the results of `peers` and `client_path`; as it was without them."""
    found = {facts["schema"]: facts for facts in results}
    peers, path = found.get("benchmarks/peers/1"), found.get("benchmarks/client_path/1")
    if peers is None or path is None or MARKS[0] not in text:
        return text
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return "".join((before, MARKS[0], "\n".join(_summary(peers, path)), "\n", MARKS[1], after))


def _summary(peers: Facts, path: Facts) -> list[str]:
    """Who sums how fast, and what the whole path costs a client."""
    epoch = path["epoch"]
    theirs = {row["name"]: row for row in peers["peers"] if row["ran"]}
    ours = {row["name"]: row for row in peers["ours"] if row["suite"] == 2}
    order = {
        "float_sum": ("no protection: float32 in NumPy", None),
        "flower, complete": ("Flower SecAgg+ {}, complete graph", "complete, 32 bits"),
        "flower, sparse": (f"Flower SecAgg+ {{}}, {peers['degree']} neighbours", "sparse, 32 bits"),
        "tenseal": ("CKKS, TenSEAL {}, NVFlare's parameters", "sparse, 16 bits"),
        "declearn": ("declearn {} masking, no dropouts", "one-shot"),
    }
    titles = {
        "complete, 32 bits": "secagg, complete graph",
        "sparse, 32 bits": f"secagg, {peers['degree']} neighbours",
        "sparse, 16 bits": f"secagg, {peers['degree']} neighbours, 16 bits",
        "one-shot": "secagg, one-shot",
    }
    rows = []
    for name, (title, beside) in order.items():
        if name in theirs:
            rows.append((title.format(theirs[name]["version"]), theirs[name]))
        if beside is not None:
            rows.append((titles[beside], ours[beside]))
    return [
        f"{peers['clients']} clients, {count(peers['dimension'])} coordinates, {peers['dropouts']} dropouts; CPU "
        "seconds of one client and of the server, side by side on one machine, with ML-KEM in our keys. What each of "
        "them does more or less stands in [benchmarks/TABLES.md](benchmarks/TABLES.md).",
        "",
        *table(
            ["", "client", "server", "upload, MB"],
            [
                (title, _short(row["client_s"]), _short(row["server_s"]), f"{row['upload_bytes'] / 1e6:.2f}")
                for title, row in rows
            ],
        ),
        "",
        f"With privacy, {path['bits']} bits and {path['degree']} neighbours, a client clips, rotates, rounds, adds "
        f"noise, masks and signs {count(path['dimension'])} coordinates in {1e3 * path['total_s']:.0f} ms. For a model "
        f"of {epoch['parameters'] / 1e6:.1f} million parameters, and with its part of the server, that is "
        f"{epoch['percent']:.1f} % of one local epoch over {count(epoch['records'])} records with Opacus.",
    ]


def _short(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.3f}"

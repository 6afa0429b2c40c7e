"""Runs every peer's script and our protocols in one go, on the same machine, and sets them side by side.

- `--prepare DIR` makes an environment for each project that is not installed beside this package; `--environments DIR`
  uses them.
- Everything runs at full size, in one thread but for those that a project starts itself; CPU seconds of all count.
- Ratios are theirs over ours, for the pairs in `BESIDE`. `server_without_verify` leaves out our hashing and checking of
  signatures. A one-shot round has committee members beside server and clients: `member_s` is the median of theirs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dp import sample_discrete_gaussian, sample_skellam, secure_random

from .. import record_level, speed
from ..harness import add_output_options, best_cpu_seconds, publish, say

MINUTES = 15  # more than any script takes at full size
MEMBERS = 16
NOISE_STDDEV = 4096.0
STEP_REPEAT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A project.

    Attributes:
        script: its file here, without ending.
        package: what is imported; empty if nothing has to be installed.
        requirement: what pip installs.
        what: which of its functions run, and what they do.
    """

    script: str
    package: str
    requirement: str
    what: str


PEERS = {
    "float_sum": Peer(script="float_sum", package="", requirement="", what="plain float32 vectors are added"),
    "flower": Peer(
        script="flower_secagg",
        package="flwr",
        requirement="flwr==1.42.0",
        what="SecAggPlusWorkflow and secaggplus_mod: quantises, weighs, masks, shares keys; averages",
    ),
    "tenseal": Peer(
        script="tenseal_ckks",
        package="tenseal",
        requirement="tenseal==0.3.18",
        what="CKKS with NVFlare's parameters: clients encrypt floats and decrypt the sum; no interaction",
    ),
    "declearn": Peer(
        script="declearn_masking",
        package="declearn",
        requirement="declearn==2.9.1",
        what="MaskingEncrypter: quantises to 64 bits, masks with every peer from seeds agreed before; all clients stay",
    ),
    "opendp": Peer(
        script="opendp_noise",
        package="opendp",
        requirement="opendp==0.16.0",
        what="make_gaussian on int64: exact discrete Gaussian",
    ),
}

NAMES = (*PEERS, "opacus")  # whose step runs in this environment, as `record_level` does
COMPLETE, SPARSE, SPARSE_16, ONE_SHOT = "complete, 32 bits", "sparse, 32 bits", "sparse, 16 bits", "one-shot"
BESIDE = {
    "float_sum": (SPARSE, ONE_SHOT),
    "flower, complete": (COMPLETE, ONE_SHOT),
    "flower, sparse": (SPARSE, ONE_SHOT),
    "tenseal": (SPARSE_16, ONE_SHOT),
    "declearn": (COMPLETE, ONE_SHOT),
}


def add_command(commands: Any) -> None:
    """Registers `peers`."""
    parser = commands.add_parser("peers", help="other projects' sums beside ours")
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="only make the environments of the peers there")
    parser.add_argument("--environments", type=Path, metavar="DIR", help="where --prepare made them")
    parser.add_argument("--peers", default=",".join(NAMES), help="comma-separated, of " + ", ".join(NAMES))
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--degree", type=int, default=32, help="neighbours in the sparse graph")
    parser.add_argument("--dropouts", type=float, default=10, help="percent of the clients, lost where they cost most")
    add_output_options(parser)
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    names = options.peers.split(",")
    if not set(names) <= set(NAMES):
        raise ValueError(f"peers are {', '.join(NAMES)}, got {options.peers}")
    if options.prepare is not None:
        prepare(options.prepare, names)
        return 0
    facts = measure(
        names,
        clients=options.clients,
        dimension=options.dimension,
        degree=options.degree,
        dropouts=round(options.clients * options.dropouts / 100),
        environments=options.environments,
    )
    publish("peers", facts, options)
    return 0


def prepare(folder: Path, names: list[str]) -> None:
    """An environment for each project that is not installed here. One that cannot be installed is named."""
    for name, peer in PEERS.items():
        if name not in names or not peer.package or find_spec(peer.package):
            continue
        say(f"{name}: installing {peer.requirement}")
        subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
        pip = [str(folder / name / "bin" / "python"), "-m", "pip", "install", "--quiet", peer.requirement]
        if subprocess.run(pip).returncode:
            say(f"{name}: {peer.requirement} cannot be installed here")


def measure(
    names: list[str], *, clients: int, dimension: int, degree: int, dropouts: int, environments: Path | None
) -> dict[str, Any]:
    """The facts that the benchmark prints."""
    run = partial(_run, environments=environments)
    survivors, size = clients - dropouts, {"dimension": dimension}
    flower = {"clients": clients, "dropouts": dropouts, "processes": os.cpu_count() or 1, **size}
    rows: dict[str, tuple[str, dict[str, int]]] = {
        "float_sum": ("float_sum", {"clients": survivors, **size}),
        "flower, complete": ("flower", {"degree": clients - 1, **flower}),
        "flower, sparse": ("flower", {"degree": degree, **flower}),
        "tenseal": ("tenseal", {"clients": survivors, **size}),
        "declearn": ("declearn", {"clients": clients, **size}),
    }
    peers = {row: run(peer, shape) for row, (peer, shape) in rows.items() if peer in names}
    ours = _ours(clients=clients, dimension=dimension, degree=degree, dropouts=dropouts)
    ratios = [
        {"peer": row, "ours": beside, "suite": own["suite"], **_ratio(peers[row], own)}
        for row in peers
        if peers[row]["ran"]
        for beside in BESIDE[row]
        for own in ours
        if own["name"] == beside
    ]
    return {
        "clients": clients,
        "dimension": dimension,
        "dropouts": dropouts,
        "degree": degree,
        "peers": [{"name": name, **row} for name, row in peers.items()],
        "ours": ours,
        "ratios": ratios,
        "noise": _noise(run, draws=dimension) if "opendp" in names else None,
        "step": _step() if "opacus" in names else None,
    }


def _run(name: str, shape: dict[str, Any], *, environments: Path | None) -> dict[str, Any]:
    """What a peer's script prints, or why it did not run."""
    peer = PEERS[name]
    facts: dict[str, Any] = {"peer": name, "what": peer.what, "shape": shape, "ran": False}
    python = sys.executable
    if peer.package and not find_spec(peer.package):
        if environments is None or not (prepared := environments.absolute() / name / "bin" / "python").exists():
            return {**facts, "reason": "not installed"}
        python = str(prepared)
    say(f"{name}: {json.dumps(shape)}")
    # One thread for numeric libraries: idle ones spin, and would count.
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [python, str(Path(__file__).parent / f"{peer.script}.py"), json.dumps(shape)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | single, timeout=60 * MINUTES)
    except subprocess.TimeoutExpired:
        return {**facts, "reason": f"not done after {MINUTES} minutes"}
    if done.returncode:
        say(done.stderr)
        return {**facts, "reason": (done.stderr.strip().splitlines() or ["it stopped"])[-1]}
    return {**facts, "ran": True, **json.loads(done.stdout)}


def _ours(*, clients: int, dimension: int, degree: int, dropouts: int) -> list[dict[str, Any]]:
    """Both protocols, in both suites; each round is compared with the plain sum."""
    size: dict[str, Any] = {"clients": clients, "dimension": dimension, "dropouts": 100 * dropouts / clients}
    rows = []
    for suite in (1, 2):
        for name, neighbours, bits in ((COMPLETE, None, 32), (SPARSE, degree, 32), (SPARSE_16, degree, 16)):
            facts = speed.measure(**size, degree=neighbours, bits=bits, threads=1, suite=suite)
            rows.append(_own(name, facts))
        rows.append(_own(ONE_SHOT, speed.measure_one_shot(**size, members=MEMBERS, bits=32, suite=suite)))
    return rows


def _own(name: str, facts: dict[str, Any]) -> dict[str, Any]:
    server = facts["server"]
    return {
        "name": name,
        "suite": facts["suite"],
        "bits": facts["bits"],
        "server_s": server["total_s"],
        # Verification is timed by itself: what is left is never less than unmasking alone.
        "server_without_verify_s": max(server["total_s"] - server["verify_s"], server["unmask_s"]),
        "client_s": facts["client"]["total_s"],
        "member_s": facts["member"]["total_s"] if "member" in facts else None,
        "upload_bytes": facts["upload_bytes"],
    }


def _ratio(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    return {
        "server": theirs["server_s"] / ours["server_s"],
        "server_without_verify": theirs["server_s"] / ours["server_without_verify_s"],
        "client": theirs["client_s"] / ours["client_s"],
        "upload": theirs["upload_bytes"] / ours["upload_bytes"],
    }


def _noise(run: Any, *, draws: int) -> dict[str, Any]:
    """CPU seconds of as many draws from OpenDP and from our samplers."""
    variance, rand = Fraction(NOISE_STDDEV) ** 2, secure_random()
    return {
        "draws": draws,
        "stddev": NOISE_STDDEV,
        "peer": run("opendp", {"draws": draws, "stddev": NOISE_STDDEV}),
        "discrete_gaussian_s": best_cpu_seconds(
            lambda: sample_discrete_gaussian(draws, variance=variance, rand=rand), repeat=3
        ),
        "skellam_s": best_cpu_seconds(lambda: sample_skellam(draws, variance=variance, rand=rand), repeat=3),
    }


def _step() -> dict[str, Any]:
    """One DP-SGD step of the multilayer perceptron without noise, Opacus' own and ours, and one share of our noise."""
    say("one DP-SGD step")
    steps = {}
    for variant in ("hooks", "exact"):
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            steps[variant] = alone.apply(record_level.measure, ("mlp", variant, 64, STEP_REPEAT))
    return {
        "peer": "opacus",
        "version": version("opacus"),
        "parameters": steps["hooks"]["parameters"],
        "batch": 64,
        "opacus_s": steps["hooks"]["step_s"],
        "ours_s": steps["exact"]["step_s"],
        "ours_noise_s": steps["exact"]["noise_s"],
    }

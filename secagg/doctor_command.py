"""`secagg doctor`: will it work here, and how fast? Nothing is changed, and nothing leaves the machine.

- *problem*: rounds will fail, or not keep what they promise; exit code 1.
- *note*: something optional is absent, or slower or larger than it need be; exit code 0.
- Speeds are measured for a fraction of a second: an order of magnitude, not a benchmark.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from dp import LedgerError, PrivacyBudget, PrivacyLedger
from protocols.primitives.prg import SEED_BYTES, apply_masks

from . import datasets
from ._siblings import VERSION
from .cli import DONE, FINDING, print_json
from .terminal import show_table

OK, NOTE, PROBLEM = "ok", "note", "problem"
OWN = ("secagg", "dp", "protocols")
REQUIRED = ("numpy", "cryptography", "msgspec", "rich")
OPTIONAL = {
    "torch": "torch",
    "opacus": "torch",
    "sklearn": "data",
    "jinja2": "report",
    "psycopg": "postgres",
    "flwr": "flower",
}
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
SLOW_AES = 0.3  # GB/s; with AES instructions a core of today does several times that, without them a tenth
MASKED_BYTES = 16_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: "ok", "note" or "problem".
        value: what was found.
        advice: what to do about it; empty if nothing.
    """

    name: str
    status: str
    value: str
    advice: str = ""


def add_doctor_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `doctor`."""
    command = commands.add_parser(
        "doctor",
        help="will it work here, and how fast: versions, ciphers, names, data, stores",
        description="Looks at versions, ciphers, shadowed names, data sets and stores. Exit code 1 is a problem.",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    findings = examine(Path.cwd())
    healthy = all(finding.status != PROBLEM for finding in findings)
    if options.json:
        print_json("doctor", {"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        show_table(
            ("what", "", "found", "advice"),
            [(one.name, one.status, one.value, one.advice) for one in findings],
        )
        problems = [finding.name for finding in findings if finding.status == PROBLEM]
        print("No problem was found." if healthy else f"Problems: {', '.join(problems)}.")
    return DONE if healthy else FINDING


def examine(folder: Path) -> list[Finding]:
    """All findings, for programs that are started in `folder`."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions, lambda: _shadows(folder), _key_agreement, _cipher, _torch, _data, _sqlite, _postgres,
    )  # fmt: skip
    return [finding for look in looks for finding in look()]


def _versions() -> Iterator[Finding]:
    """Python, this package, what it needs, and what extras add."""
    yield Finding(name="python", status=OK, value=f"{platform.python_version()} on {platform.machine()}")
    yield Finding(name="secagg", status=OK, value=VERSION)
    for name in (*REQUIRED, *OPTIONAL):
        try:
            yield Finding(name=name, status=OK, value=version(DISTRIBUTIONS.get(name, name)))
        except PackageNotFoundError:
            advice = f"pip install 'secagg[{OPTIONAL[name]}]'" if name in OPTIONAL else f"pip install {name}"
            status = NOTE if name in OPTIONAL else PROBLEM
            yield Finding(name=name, status=status, value="not installed", advice=advice)


def _shadows(folder: Path) -> Iterator[Finding]:
    """Files that win over a package of the same name in every program that is started in this folder."""
    own_home, others_home = Path(__file__).resolve().parents[1], Path(np.__file__).resolve().parents[1]
    here, found = folder.resolve(), []
    for name in (*OWN, *REQUIRED, *OPTIONAL):
        home = own_home if name in OWN else others_home
        if here != home:
            found += [path for path in (here / f"{name}.py", here / name / "__init__.py") if path.is_file()]
    for path in found:
        place, advice = str(path.relative_to(here)), "rename it: Python would import it instead"
        yield Finding(name="shadowed name", status=PROBLEM, value=place, advice=advice)
    if not found:
        yield Finding(name="shadowed names", status=OK, value="none in this folder")


def _key_agreement() -> Iterator[Finding]:
    """ML-KEM-768, half of the hybrid suite."""
    openssl = backend.openssl_version_text()
    try:
        key = MLKEM768PrivateKey.generate()
    except UnsupportedAlgorithm:
        advice = "install a wheel of cryptography >= 47; rounds use ML-KEM by default"
        yield Finding(name="ML-KEM-768", status=PROBLEM, value=f"not offered by {openssl}", advice=advice)
        return

    def agree() -> None:
        _, ciphertext = key.public_key().encapsulate()
        key.decapsulate(ciphertext)

    seconds = min(_timed(agree) for _ in range(20))
    yield Finding(name="ML-KEM-768", status=OK, value=f"{1e6 * seconds:.0f} us to send and open a secret ({openssl})")


def _cipher() -> Iterator[Finding]:
    """AES-256-CTR and additions: what masking is made of."""
    words = np.zeros(MASKED_BYTES // 4, dtype=np.uint32)
    seconds = min(_timed(lambda: apply_masks(words, add=[os.urandom(SEED_BYTES)], subtract=[])) for _ in range(3))
    speed = MASKED_BYTES / seconds / 1e9
    advice = "" if speed >= SLOW_AES else "the processor seems to lack AES instructions, or is busy"
    yield Finding(
        name="masking", status=NOTE if advice else OK, value=f"{speed:.1f} GB/s on one core of {os.cpu_count()}",
        advice=advice,
    )  # fmt: skip


def _torch() -> Iterator[Finding]:
    """Whether the build of torch fits the machine."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    idle = bool(torch.version.cuda) and not torch.cuda.is_available()
    yield Finding(
        name="torch build", status=NOTE if idle else OK, value=f"{build}, {torch.get_num_threads()} threads",
        advice="no GPU answers: a CPU build is several gigabytes smaller" if idle else "",
    )  # fmt: skip


def _data() -> Iterator[Finding]:
    """The real data of demonstrations."""
    for name, failure in datasets.installed().items():
        missing = isinstance(failure, ImportError)
        yield Finding(
            name=f"data: {name}", status=NOTE if failure else OK,
            value="not installed" if missing else "differs from the known copy" if failure else "found",
            advice="" if failure is None else "pip install 'secagg[data]'" if missing else str(failure),
        )  # fmt: skip


def _sqlite() -> Iterator[Finding]:
    """Whether a ledger survives on this machine's temporary disk."""
    budget = PrivacyBudget(epsilon=4.0, delta=1e-6, unit="client", order=8)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "doctor.ledger"
            PrivacyLedger.create(path, budget=budget).close()
            PrivacyLedger.open(path).close()
    except (LedgerError, sqlite3.Error, OSError) as error:
        yield Finding(name="ledger on disk", status=PROBLEM, value=str(error), advice="ledgers need a writable disk")
        return
    yield Finding(name="ledger on disk", status=OK, value=f"written and read again, SQLite {sqlite3.sqlite_version}")


def _postgres() -> Iterator[Finding]:
    """Whether the driver for shared ledgers finds its library."""
    if importlib.util.find_spec("psycopg") is None:
        return
    try:
        import psycopg
    except ImportError as error:
        advice = "pip install 'secagg[postgres]'"
        yield Finding(name="PostgreSQL", status=NOTE, value=str(error).splitlines()[0], advice=advice)
        return
    library = psycopg.pq.version()
    yield Finding(name="PostgreSQL", status=OK, value=f"libpq {library // 10_000}.{library % 10_000}")


def _timed(call: Callable[[], object]) -> float:
    """Seconds on the clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

"""A training run on disk, so that it survives `kill -9`: what the next round needs, written after every finished one.

1. One file, `run.npz`: arrays without pickle, and one JSON text with everything else. It is written beside, forced to
   disk, and renamed: there is the old state or the new one, never half of one.
2. The file names the run it belongs to by a digest over the configuration and all settings. Another run is refused.
3. It notes the head of every privacy ledger. A run resumes only on ledgers that contain these heads, so an old copy of
   a ledger cannot be put under a newer model.
4. Keys, masks and noise are never in it. A round in flight when the process died is lost: `settle` charges it in full
   at every party, and the round is done again with new keys.
5. A checkpoint that cannot be read is refused, never started over: the ledgers know of rounds that it should hold.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp import LedgerError, PrivacyBudget, PrivacyLedger
from protocols import Phase

from .callbacks import RoundRecord

FORMAT = "secagg/checkpoint/1"
Groups = Mapping[str, Mapping[str, NDArray[Any]]]


class CheckpointError(ValueError):
    """A checkpoint is damaged, or belongs to another run: nothing was trained and nothing was overwritten."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Saved:
    """What stands in a checkpoint.

    Attributes:
        records: all finished rounds.
        exact_sums: how many of their sums were compared and found equal.
        groups: named arrays, in groups: "model", "average", "optimizer".
        heads: the newest entry of each party's ledger after the last round.
        clip_norm: of the next round.
    """

    records: tuple[RoundRecord, ...]
    exact_sums: int
    groups: Groups
    heads: Mapping[str, str]
    clip_norm: float


class Checkpoint:
    """The state of one run in a folder.

    Args:
        folder: made if it is missing.
        run: everything that makes this run another one if it changes, in plain JSON types.
    """

    def __init__(self, folder: str | Path, *, run: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self._file = self.folder / "run.npz"
        self._run = sha256(b"secagg/v1/run" + json.dumps(run, sort_keys=True).encode()).hexdigest()

    @property
    def ledgers(self) -> Path:
        """Where the run keeps its ledgers unless told otherwise."""
        return self.folder / "ledgers"

    def load(self) -> Saved | None:
        """The saved state; None before the first round has finished.

        Raises:
            CheckpointError: the file is damaged or belongs to another run.
        """
        if not self._file.exists():
            return None
        try:
            with np.load(io.BytesIO(self._file.read_bytes()), allow_pickle=False) as arrays:
                facts = json.loads(bytes(arrays["facts"]))
                groups: dict[str, dict[str, NDArray[Any]]] = {name: {} for name in facts["groups"]}
                for key in arrays.files:
                    if key != "facts":
                        group, _, name = key.partition("/")
                        groups[group][name] = arrays[key]
            written, run = facts["format"], facts["run"]
            saved = Saved(
                records=tuple(_record(item) for item in facts["records"]),
                exact_sums=facts["exact_sums"],
                groups=groups,
                heads=facts["heads"],
                clip_norm=float(facts["clip_norm"]),
            )
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{self._file} is damaged ({error!r}): restore it from a backup") from error
        if written != FORMAT:
            raise CheckpointError(f"{self._file} has format {written!r}, this version reads {FORMAT!r}")
        if run != self._run:
            raise CheckpointError(
                f"{self._file} belongs to another run ({run[:16]}, not {self._run[:16]}): the configuration, the "
                "clients or a training setting differs; use another folder, or the same settings"
            )
        return saved

    def save(self, saved: Saved) -> None:
        """Replaces the state; it survives a crash once this returns.

        Raises:
            OSError: the folder cannot be written.
        """
        facts = {
            "format": FORMAT,
            "run": self._run,
            "records": [_plain(record) for record in saved.records],
            "exact_sums": saved.exact_sums,
            "groups": sorted(saved.groups),
            "heads": dict(saved.heads),
            "clip_norm": saved.clip_norm,
        }
        arrays: dict[str, Any] = {
            f"{group}/{name}": array for group, named in saved.groups.items() for name, array in named.items()
        }
        text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, facts=text, **arrays)
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self._file.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._file)
        _force(self.folder)


def has_ledgers(folder: Path) -> bool:
    """Whether a folder holds any party's ledger."""
    return any(folder.glob("*.ledger"))


def enrol(folder: Path, names: Iterable[str], *, budget: PrivacyBudget) -> None:
    """Creates one ledger for each name, all or none: a crash on the way leaves no half-made folder behind.

    Args:
        folder: of the ledgers; nothing happens if it holds one.
        names: of the parties.
        budget: of each of them.

    Raises:
        LedgerError: the folder holds other files.
    """
    if has_ledgers(folder):
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise LedgerError(f"{folder} holds other files: name a folder for the ledgers alone")
    beside = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)  # it was never in use
    beside.mkdir(parents=True)
    for name in names:
        PrivacyLedger.create(beside / f"{name}.ledger", budget=budget).close()
    beside.replace(folder)
    _force(folder.parent)


def settle(saved: Saved | None, ledgers: Mapping[str, PrivacyLedger]) -> None:
    """Charges what was in flight when the run stopped, once the ledgers are known to be those of the checkpoint.

    Args:
        saved: the state from which the run resumes.
        ledgers: those of all parties, by name.

    Raises:
        LedgerError: a ledger lacks the head that the checkpoint notes, or is damaged.
    """
    heads = {} if saved is None else saved.heads
    if saved is not None and heads.keys() != ledgers.keys():
        raise LedgerError(f"the checkpoint knows the ledgers {sorted(heads)}, found {sorted(ledgers)}")
    for name, ledger in ledgers.items():
        ledger.verify(expected_head=heads.get(name))
        for reservation in ledger.unfinished():
            ledger.charge(reservation)


def _plain(record: RoundRecord) -> dict[str, Any]:
    """A record in JSON types; Python's reader and writer keep infinity and every bit of a float."""
    by_phase = {
        name: {phase.value: value for phase, value in getattr(record, name).items()} for name in ("missing", "seconds")
    }
    return {**asdict(record), **by_phase, "riders": dict(record.riders)}


def _record(data: Mapping[str, Any]) -> RoundRecord:
    by_phase = {name: {Phase(value): number for value, number in data[name].items()} for name in ("missing", "seconds")}
    return RoundRecord(**{**data, **by_phase})


def _force(folder: Path) -> None:
    """A rename is durable when its folder is; where folders cannot be opened, the system sees to it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

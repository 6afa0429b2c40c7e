"""A program that trains, is killed with SIGKILL at random moments, resumes, and reports what left it meanwhile.

`python -m tests.secagg.crashing_run FOLDER KILLS`: each run is a forked child, so that only the first pays for imports.
Every message that reaches the server is noted in `FOLDER/left`, by one write that a kill cannot tear, before the server
sees it: a count that knows nothing of ledgers. The last run is left alone and writes `FOLDER/done`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import secagg
from protocols import Phase
from protocols.wire import AdvertiseKeys, decode
from secagg.adapters.torch import parameters_of
from secagg.training import train

CLIENTS, ROUNDS = 4, 5
MESSAGES = 4 * 2 + 3 * 3  # of a round in which one client falls silent after sharing keys


def model() -> nn.Module:
    return nn.Linear(2, 2)


def config(kills: int) -> secagg.AggregationConfig:
    """Room for every killed round: it is charged and done again."""
    return secagg.AggregationConfig.cross_silo(
        like=parameters_of(model()), clients=CLIENTS, max_dropouts=1, max_colluders=0,
        privacy=secagg.ClientLevel(clip_norm=1.0, epsilon=50.0, delta=1e-5, rounds=ROUNDS + kills),
    )  # fmt: skip


def run(folder: Path, kills: int, last: int | None) -> None:
    """Trains to the end, unless it is killed, at the latest when `last` messages have left."""
    folder.mkdir(exist_ok=True)
    left = os.open(folder / "left", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    agreed = config(kills)
    counted: list[int] = []

    def tap(client: int, phase: Phase, data: bytes) -> None:
        note: dict[str, object] = {"client": client, "phase": phase.value}
        if phase is Phase.ADVERTISE_KEYS:
            bundle = decode(data, AdvertiseKeys, limit=len(data)).bundle
            note["keys"] = [bundle.channel_key.hex(), bundle.mask_key.hex()]
        os.write(left, json.dumps(note).encode() + b"\n")
        counted.append(client)
        if len(counted) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    clients = {client: TensorDataset(torch.eye(2), torch.tensor([0, 1])) for client in range(1, CLIENTS + 1)}
    result = train(
        model, clients, agreed, rounds=ROUNDS, learning_rate=0.1, checkpoint=folder / "run", tap=tap,
        drop=lambda number: {number % CLIENTS + 1},
    )  # fmt: skip
    (folder / "done").write_text(json.dumps([record.epsilon for record in result.rounds]))


def child(folder: Path, kills: int, last: int | None = None) -> int:
    """A run in a process of its own; its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        run(folder, kills, last)
        code = 0
    finally:
        os._exit(code)


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    began = time.perf_counter()
    os.waitpid(child(folder / "undisturbed", kills), 0)
    whole = time.perf_counter() - began
    killed = 0
    for number in range(kills):
        # The first kill comes after a masked vector has left, every other one with some message, the rest at any time.
        first = 9 if number == 0 else 1
        last = random.randrange(first, MESSAGES + 1) if number % 2 == 0 else None
        process = child(folder / "disturbed", kills, last)
        if last is None:
            time.sleep(random.uniform(0, 0.6 * whole))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        killed += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
            sys.exit("a resumed run failed")
    _, status = os.waitpid(child(folder / "disturbed", kills), 0)
    (folder / "killed").write_text(str(killed))
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Wherever masks are expanded, the sum has the same bits; a worker that dies costs time, not the round."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from protocols import Phase
from protocols.partial import MaskJob
from secagg import executor
from secagg.executor import ATTEMPTS, Pool, WorkersLostError

from .parties import Parties, plain_config, updates_for

JOB = MaskJob(
    context=bytes(32),
    add=(bytes(range(32)), bytes(range(1, 33))),
    subtract=(bytes(range(2, 34)),),
    dtype=np.dtype(np.uint32),
)
WORDS, STEP = 4096, 512


def expanded(pool: Pool | None) -> np.ndarray:
    words = np.zeros(WORDS, dtype=np.uint32)
    JOB.add_to(words, step=STEP, map=map if pool is None else pool.map)
    return words


@dataclass(frozen=True)
class Deadly:
    """Squares numbers, but kills its process at the number 3: as long as fewer than `times` lie dead."""

    folder: Path
    times: int
    here: int

    def __call__(self, number: int) -> int:
        if number == 3 and os.getpid() != self.here:
            dead = len(list(self.folder.iterdir()))
            if dead < self.times:
                (self.folder / str(dead)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return number * number


def fail(number: int) -> int:
    raise KeyError(number)


def test_threads_give_the_same_bits() -> None:
    with executor.threads(2) as pool:
        assert np.array_equal(expanded(pool), expanded(None))


class TestProcesses:
    def test_give_the_same_bits_in_a_round_and_for_a_job(self) -> None:
        config = plain_config(4)
        updates = updates_for(config)
        with executor.processes(2) as pool:
            assert np.array_equal(expanded(pool), expanded(None))
            parties = Parties(config, map=pool.map)
            result = parties.run(updates, silent={2: Phase.MASKED_INPUT})
        mean = np.mean([updates[client]["w"] for client in (1, 3, 4)], axis=0)
        assert np.allclose(result.mean["w"], mean, atol=1e-5)

    @pytest.mark.parametrize("deaths", [1, ATTEMPTS - 1])
    def test_a_lost_part_is_done_again(self, deaths: int, tmp_path: Path) -> None:
        task = Deadly(tmp_path, deaths, os.getpid())
        with executor.processes(2, recompute=False) as pool:
            assert list(pool.map(task, range(6))) == [number * number for number in range(6)]
        assert len(list(tmp_path.iterdir())) == deaths

    def test_what_always_dies_is_computed_here(self, tmp_path: Path) -> None:
        with executor.processes(2) as pool:
            results = list(pool.map(Deadly(tmp_path, 99, os.getpid()), range(6)))
        assert results == [number * number for number in range(6)]
        assert len(list(tmp_path.iterdir())) == ATTEMPTS

    def test_or_is_a_typed_error(self, tmp_path: Path) -> None:
        with executor.processes(1, recompute=False) as pool, pytest.raises(WorkersLostError, match="parts"):
            list(pool.map(Deadly(tmp_path, 99, os.getpid()), range(6)))

    def test_errors_of_an_item_are_the_callers(self) -> None:
        with executor.processes(1) as pool, pytest.raises(KeyError):
            list(pool.map(fail, [1]))


def test_ray_without_a_cluster_says_what_to_do() -> None:
    with pytest.raises((RuntimeError, ImportError), match="ray"), executor.ray_cluster():
        pass


@pytest.mark.slow
def test_ray(tmp_path: Path) -> None:
    """In a process of its own: Ray warns of files that it leaves open."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.secagg.ray_program", str(tmp_path)],
        cwd=root, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "facts.json").read_text()) == {
        "same_bits": True,
        "after_one_death": [number * number for number in range(6)],
        "deaths": 1,
        "after_every_death": [9, 16],
        "all_deaths": ATTEMPTS,
        "refused": True,
        "error": "KeyError",
    }

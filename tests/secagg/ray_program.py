"""A program that expands masks on a small Ray cluster and lets workers die; writes FOLDER/facts.json."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import ray

from secagg import executor
from secagg.executor import WorkersLostError
from tests.secagg.test_executor import Deadly, expanded, fail


def main(folder: Path) -> None:
    facts: dict[str, object] = {}
    once, always = folder / "once", folder / "always"
    once.mkdir()
    always.mkdir()
    with executor.ray_cluster() as pool:
        facts["same_bits"] = bool(np.array_equal(expanded(pool), expanded(None)))
        facts["after_one_death"] = list(pool.map(Deadly(once, 1, os.getpid()), range(6)))
        facts["deaths"] = len(list(once.iterdir()))
        facts["after_every_death"] = list(pool.map(Deadly(always, 99, os.getpid()), [3, 4]))
        facts["all_deaths"] = len(list(always.iterdir()))
        try:
            list(pool.map(fail, [1]))
        except KeyError:
            facts["error"] = "KeyError"
    with executor.ray_cluster(recompute=False) as strict:
        try:
            list(strict.map(Deadly(always, 99, os.getpid()), [3]))
        except WorkersLostError:
            facts["refused"] = True
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    ray.init(
        num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path.cwd())}},
    )  # fmt: skip
    try:
        main(Path(sys.argv[1]))
    finally:
        ray.shutdown()

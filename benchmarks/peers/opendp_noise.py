"""Exact integer noise by OpenDP: a discrete Gaussian on every coordinate of an int64 vector."""

from __future__ import annotations

import json
import math
import sys
import time
from importlib.metadata import version
from typing import Any


def measure(*, draws: int, stddev: float) -> dict[str, Any]:
    """CPU seconds of so many draws; their deviation is compared with the one asked for."""
    import opendp.prelude as opendp

    opendp.enable_features("contrib")
    space = opendp.vector_domain(opendp.atom_domain(T="i64")), opendp.l2_distance(T="i64")
    mechanism = opendp.m.make_gaussian(*space, scale=stddev)
    zeros = [0] * draws
    began = time.process_time()
    noise = mechanism(zeros)
    seconds = time.process_time() - began
    deviation = math.sqrt(sum(value * value for value in noise) / draws)
    if abs(deviation / stddev - 1) > 8 / math.sqrt(2 * draws):
        raise RuntimeError(f"a standard deviation of {deviation}")
    return {"version": version("opendp"), "draws": draws, "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))

"""A plain sum of float32 vectors: no masks, no noise, nothing hidden. What aggregation costs at the least."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np


def measure(*, clients: int, dimension: int) -> dict[str, Any]:
    """One sum: clients turn float64 into bytes, the server reads and adds them."""
    total = np.zeros(dimension)
    times, server, upload = [], 0.0, 0
    for client in range(clients):
        update = (np.arange(dimension) * 31 + client * 17) % 1009 / 1009 - 0.5
        began = time.process_time()
        data = update.astype(np.float32).tobytes()
        times.append(time.process_time() - began)
        upload = len(data)
        began = time.process_time()
        total += np.frombuffer(data, dtype=np.float32)
        server += time.process_time() - began
    return {
        "version": np.__version__,
        "server_s": server,
        "client_s": statistics.median(times),
        "upload_bytes": upload,
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))

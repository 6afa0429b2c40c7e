"""Masking by declearn: an update quantised to 64 bits, masked once with every peer, added by the server.

- Each client starts from seeds that it shares with all others; agreeing on them is not in these numbers. No dropouts.
- Client: the median of encrypting and serialising `ModelUpdates`. Server: reading and adding all of them, and
  decrypting the sum, which is compared with the plain one.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np


def measure(*, clients: int, dimension: int) -> dict[str, Any]:
    """One round."""
    from declearn.aggregator import ModelUpdates
    from declearn.model.sklearn import NumpyVector
    from declearn.secagg.masking import MaskingDecrypter, MaskingEncrypter
    from declearn.utils.serialize import msgpack_deserialize, msgpack_serialize

    total: Any = None
    plain = np.zeros(dimension)
    times, server, upload = [], 0.0, 0
    for client in range(clients):
        update = (np.arange(dimension) * 31 + client * 17) % 1009 / 1009 - 0.5
        plain += update
        encrypter = MaskingEncrypter(
            pos_masks_seeds=[clients * client + peer for peer in range(client + 1, clients)],
            neg_masks_seeds=[clients * peer + client for peer in range(client)],
        )
        began = time.process_time()
        message = ModelUpdates(updates=NumpyVector({"update": update}), weights=1.0)
        data = msgpack_serialize(encrypter.encrypt_aggregate(message))
        times.append(time.process_time() - began)
        upload = len(data)
        began = time.process_time()
        received = msgpack_deserialize(data)
        total = received if total is None else total + received
        server += time.process_time() - began
    began = time.process_time()
    opened = MaskingDecrypter(n_peers=clients).decrypt_aggregate(total)
    server += time.process_time() - began
    if not np.allclose(opened.updates.coefs["update"], plain, rtol=0, atol=1e-6):
        raise RuntimeError("the sum is not the plain one")
    return {
        "version": version("declearn"),
        "server_s": server,
        "client_s": statistics.median(times),
        "upload_bytes": upload,
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))

"""CKKS by TenSEAL with the parameters that NVFlare's provisioning sets: the server adds ciphertexts, clients decrypt.

- Degree 8192, moduli of 60, 40 and 40 bits, scale 2^40, symmetric encryption; a whole update in one `ckks_vector`.
- Client: encrypts and serialises its update, reads the sum and decrypts it. Server: reads and adds all ciphertexts.
- A few clients encrypt; the server gets what they sent over and over. The decrypted sum is compared with the plain one.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np

ENCRYPTING = 3


def measure(*, clients: int, dimension: int) -> dict[str, Any]:
    """One sum."""
    import tenseal

    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 40],
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )  # fmt: skip
    context.global_scale = 2.0**40
    updates = [(np.arange(dimension) * 31 + client * 17) % 1009 / 1009 - 0.5 for client in range(ENCRYPTING)]
    sealed, uploads = [], []
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # it warns of vectors longer than one ciphertext; the result goes to the old standard output
    for update in updates:
        began = time.process_time()
        uploads.append(tenseal.ckks_vector(context, update).serialize())
        sealed.append(time.process_time() - began)
    public = tenseal.context_from(context.serialize(save_public_key=False, save_secret_key=False))
    began = time.process_time()
    total = tenseal.ckks_vector_from(public, uploads[0])
    for client in range(1, clients):
        total += tenseal.ckks_vector_from(public, uploads[client % ENCRYPTING])
    answer = total.serialize()
    server = time.process_time() - began
    began = time.process_time()
    opened = tenseal.ckks_vector_from(context, answer).decrypt()
    decrypted = time.process_time() - began
    plain = sum(updates[client % ENCRYPTING] for client in range(clients))
    if not np.allclose(opened, plain, rtol=0, atol=1e-4):
        raise RuntimeError("the sum is not the plain one")
    return {
        "version": version("tenseal"),
        "server_s": server,
        "client_s": statistics.median(sealed) + decrypted,
        "client_encrypt_s": statistics.median(sealed),
        "upload_bytes": len(uploads[0]),
    }


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    print(json.dumps(measure(**json.loads(sys.argv[1]))), file=out)

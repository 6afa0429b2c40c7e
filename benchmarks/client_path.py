"""All that a client computes for one release, from its update to the bytes it sends, beside local training.

- Each part is the library's own code on the whole vector: clip, rotate, encode (stochastic rounding, exact norm check),
  one noise share, pack, mask, hash, sign, serialise; the least CPU seconds of several calls in one thread.
- `prepare_s` is the first four and the ring in one call, as clients make it. `protocol_s` is everything that a client
  computes in a real round, keys, shares and signatures included, the median over the survivors. `total_s` adds the two.
- A floor is what the same bytes take at the least, in the same run: one pass that reads the input and writes the output
  at the speed of a copy that does not fit the cache, the keystream of AES-256-CTR that the part needs, or SHA-256.
- `epoch` is one pass over 1,000 records with Opacus' hooks, and what the aggregation of that model costs beside it: the
  client and its part of the server, taken from these `dimension` coordinates in proportion.
- `noise` is a million draws of standard deviation 4096, beside the difference of NumPy's two Poisson variables.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import warnings
from collections.abc import Callable
from fractions import Fraction
from hashlib import sha256
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from dp import ClientLevel, clip_by_l2, sample_discrete_gaussian, sample_skellam, secure_random, to_ring
from dp.rotation import Rotation
from protocols import Identity
from protocols.primitives.packing import pack
from protocols.primitives.prg import BLOCK_BYTES, SEED_BYTES, apply_masks
from protocols.roster import signed_text
from secagg import AggregationConfig
from secagg.pipeline import prepare

from .harness import add_output_options, add_suite_option, best_cpu_seconds, publish, say
from .record_level import _model, _opacus
from .rounds import Round, fixed_degree, round_config
from .speed import FLOOR_BYTES, floor_seconds

BITS = 16
EPSILON, DELTA = 5.0, 1e-6  # of one release: a noise multiplier of about 1
RECORDS, BATCH = 1000, 64
DRAWS, STDDEV = 1_000_000, 4096
COPIED_BYTES = 256 * 1024 * 1024  # far more than a cache holds


def add_command(commands: Any) -> None:
    """Registers `client_path`."""
    parser = commands.add_parser("client_path", help="a client's whole path with noise, beside a local epoch")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--degree", type=int, default=32, help="neighbours of a client")
    parser.add_argument("--dropouts", type=float, default=10, help="percent of the clients, lost where they cost most")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--records", type=int, default=RECORDS, help="of the local epoch")
    add_suite_option(parser)
    add_output_options(parser)
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    facts = measure(
        clients=options.clients,
        dimension=options.dimension,
        degree=options.degree,
        dropouts=options.dropouts,
        suite=options.suite,
        repeat=options.repeat,
        records=options.records,
    )
    publish("client_path", facts, options)
    return 0


def measure(
    *, clients: int, dimension: int, degree: int, dropouts: float, suite: int, repeat: int, records: int
) -> dict[str, Any]:
    """Runs the benchmark; the facts that it prints."""
    if repeat < 1 or records < BATCH:
        raise ValueError(f"repeat is at least 1 and records at least {BATCH}, got {repeat} and {records}")
    dropped = round(clients * dropouts / 100)
    update = {"w": np.sin(np.arange(dimension, dtype=np.float64)).astype(np.float32)}
    config = AggregationConfig.cross_device(
        like=update, clients=clients, max_dropouts=dropped, max_colluders=clients // 10, modulus_bits=BITS,
        privacy=ClientLevel(clip_norm=1.0, epsilon=EPSILON, delta=DELTA, rounds=1),
    )  # fmt: skip
    assert config.mechanism is not None
    seed = os.urandom(32)
    say("parts")
    rates = _rates()
    parts = _parts(update, config, seed=seed, seeds=degree + 1, repeat=repeat, rates=rates)
    rand = secure_random()
    prepared = best_cpu_seconds(lambda: prepare(update, config, rand=rand, seed=seed), repeat=repeat)

    say(f"round: {clients} clients, {dimension} coordinates, {dropped} dropouts")
    timed = Round(
        round_config(
            clients=clients, dropouts=dropped, dimension=dimension, bits=BITS, suite=suite,
            degree=fixed_degree(degree, clients=clients),
        )
    )  # fmt: skip
    timed.run()
    server = timed.server_seconds().cpu["total"]
    protocol = timed.client_seconds("total")

    say("epoch")
    with multiprocessing.get_context("spawn").Pool(1) as alone:
        epoch = alone.apply(local_epoch, (records,))
    aggregation = (prepared + protocol + server / clients) * epoch["parameters"] / dimension
    return {
        "clients": clients,
        "dimension": dimension,
        "degree": timed.config.degree,
        "dropouts": dropped,
        "bits": BITS,
        "suite": suite,
        "rotation": config.rotation,
        "noise_multiplier": config.mechanism.noise_multiplier,
        "rates": {"copy_gb_per_s": 1e-9 / rates["copy"], "aes_gb_per_s": 1e-9 / rates["aes"]},
        "parts": parts,
        "prepare_s": prepared,
        "protocol_s": protocol,
        "total_s": prepared + protocol,
        "server_per_client_s": server / clients,
        "epoch": {**epoch, "aggregation_s": aggregation, "percent": 100 * aggregation / epoch["seconds"]},
        "noise": _noise(repeat=min(repeat, 3)),
    }


def _parts(
    update: dict[str, Any], config: AggregationConfig, *, seed: bytes, seeds: int, repeat: int, rates: dict[str, float]
) -> dict[str, dict[str, float]]:
    """CPU seconds, floor and ratio of each part."""
    rand, encoder, mechanism = secure_random(), config.encoder, config.mechanism
    flat = config.layout.flatten(update)
    clip_norm = encoder.first_clip(config.length)
    clipped = clip_by_l2(flat, clip_norm=clip_norm)
    assert mechanism is not None
    noise = mechanism.noise_share(rand=rand)
    ring = to_ring(noise, modulus_bits=BITS)
    words = pack(ring, BITS)
    masks = [os.urandom(SEED_BYTES) for _ in range(seeds)]
    identity = Identity.generate()
    text = signed_text("MaskedInput", bytes(32))
    head, tail = bytes(200), bytes(64)
    calls: dict[str, Callable[[], object]] = {
        "clip": lambda: clip_by_l2(config.layout.flatten(update), clip_norm=clip_norm),
        "rotate": lambda: Rotation(config.length, seed=seed).apply(clipped),
        "encode": lambda: encoder.encode(clipped, rand=rand),
        "noise": lambda: mechanism.noise_share(rand=rand),
        "pack": lambda: pack(to_ring(noise, modulus_bits=BITS), BITS),
        "mask": lambda: apply_masks(words, add=masks[: seeds // 2], subtract=masks[seeds // 2 :]),
        "hash": lambda: sha256(words.data).digest(),
        "sign": lambda: identity.sign(text),
        "serialise": lambda: b"".join((head, words.data, tail)),
    }
    seconds = {name: best_cpu_seconds(call, repeat=repeat) for name, call in calls.items()}
    seconds["encode"] -= best_cpu_seconds(lambda: clip_by_l2(clipped, clip_norm=clip_norm), repeat=repeat)
    floats, floor = 8 * config.length, rates
    floors = {
        "clip": (flat.nbytes + floats) * floor["copy"],
        "rotate": 2 * floats * floor["copy"],
        "encode": 2 * floats * floor["copy"] + 4 * config.length * floor["aes"],
        "noise": floats * floor["copy"] + 8 * config.length * floor["aes"],
        "pack": (floats + words.nbytes) * floor["copy"],
        "mask": seeds * words.nbytes * floor["mask"],
        "hash": words.nbytes * floor["sha256"],
        "sign": seconds["sign"],  # one signature is its own floor
        "serialise": 2 * words.nbytes * floor["copy"],
    }
    return {
        name: {"s": seconds[name], "floor_s": floors[name], "over_floor": seconds[name] / floors[name]}
        for name in calls
    }


def _rates() -> dict[str, float]:
    """Seconds per byte: of a copy (read or written), AES-256-CTR, AES with addition, SHA-256."""
    source = np.ones(COPIED_BYTES // 16)
    target = np.empty_like(source)
    zeros, keystream = bytes(BLOCK_BYTES), bytearray(BLOCK_BYTES)
    blocks = COPIED_BYTES // BLOCK_BYTES
    stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def expand() -> None:
        for _ in range(blocks):
            stream.update_into(zeros, keystream)

    return {
        "copy": best_cpu_seconds(lambda: np.copyto(target, source), repeat=3) / (2 * source.nbytes),
        "aes": best_cpu_seconds(expand, repeat=3) / COPIED_BYTES,
        "mask": floor_seconds(FLOOR_BYTES) / FLOOR_BYTES,
        "sha256": best_cpu_seconds(lambda: sha256(zeros).digest(), repeat=20) / BLOCK_BYTES,
    }


def local_epoch(records: int) -> dict[str, Any]:
    """One epoch of the multilayer perceptron with per-record gradients, clipping and steps of Opacus, without noise."""
    import torch

    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # inputs need no gradient
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, inputs, targets = _model("mlp", records)
    step, _ = _opacus(module, "hooks")

    def epoch() -> None:
        for start in range(0, records, BATCH):
            step(inputs[start : start + BATCH], targets[start : start + BATCH])

    return {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "records": records,
        "batch": BATCH,
        "seconds": best_cpu_seconds(epoch, repeat=2),
    }


def _noise(*, repeat: int) -> dict[str, Any]:
    """CPU seconds of many draws of each kind."""
    rand, generator, variance = secure_random(), np.random.default_rng(), Fraction(STDDEV**2)
    skellam = best_cpu_seconds(lambda: sample_skellam(DRAWS, variance=variance, rand=rand), repeat=repeat)

    def poisson() -> object:
        return generator.poisson(STDDEV**2 / 2, DRAWS) - generator.poisson(STDDEV**2 / 2, DRAWS)

    numpy = best_cpu_seconds(poisson, repeat=repeat)
    return {
        "draws": DRAWS,
        "stddev": STDDEV,
        "skellam_s": skellam,
        "discrete_gaussian_s": best_cpu_seconds(
            lambda: sample_discrete_gaussian(DRAWS, variance=variance, rand=rand), repeat=repeat
        ),
        "numpy_poisson_s": numpy,
        "skellam_over_numpy": skellam / numpy,
    }

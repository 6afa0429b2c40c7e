"""What ring-LWE parameters cost to break, by the usual rough estimate. This is not the lattice estimator.

Rules:

1. Only one attack is looked at: the primal one, with m samples, on the embedded lattice of dimension N + m + 1 and
   volume q^m. Key and errors have the same standard deviation sigma.
2. Block size beta is enough if sigma sqrt(beta) <= delta^(2 beta - dim) q^(m / dim), the condition of 2016 under the
   geometric series assumption; delta = (beta / (2 pi e) (pi beta)^(1 / beta))^(1 / (2 (beta - 1))).
3. The attack costs 2^(0.292 beta) classically and 2^(0.265 beta) with a quantum computer: one call of a sieve, all
   else for free ("core-SVP"). m is chosen best, up to 2 N.
4. Who opens a sum over h honest clients learns the sums of their keys and errors. One of them keeps sqrt(1 - 1/h) of
   its standard deviation, so at h = 2 what is left is sigma / sqrt(2): that is the row to look at.

Not looked at: dual and hybrid attacks, the structure of the ring, the exact (binomial) law, the cost of lattice
reduction beside the sieve, and whether the hint can be used for more than a smaller deviation.
"""

from __future__ import annotations

import argparse
from math import e, log2, pi, sqrt
from typing import Any

from protocols.primitives import ring_mask

from .harness import add_output_options, publish

CLASSICAL, QUANTUM = 0.292, 0.265  # bits for each unit of the block size
LEAST_BLOCK = 50  # below it the formula for delta means nothing
SHAPES = ((2048, 32), (2048, 40), (2048, 50), (1024, 22), (1024, 24), (1024, 26))


def add_command(commands: Any) -> None:
    """Registers `lattice`."""
    parser = commands.add_parser("lattice", help="core-SVP estimate of ring-LWE parameters; not the lattice estimator")
    add_output_options(parser)
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    publish("lattice", facts(), options)
    return 0


def facts() -> dict[str, Any]:
    """The table: each shape with the whole deviation, and with what a hint over two honest clients leaves."""
    whole = sqrt(ring_mask.VARIANCE)
    rows = [
        {"degree": degree, "modulus_bits": bits, "deviation": deviation, **estimate(degree, bits, deviation)}
        for degree, bits in SHAPES
        for deviation in (whole, whole / sqrt(2))
    ]
    return {"method": "primal core-SVP, 2016 estimate; not the lattice estimator", "rows": rows}


def estimate(degree: int, modulus_bits: int, deviation: float) -> dict[str, Any]:
    """The smallest block size that is enough, and what it costs in bits."""
    low, high = LEAST_BLOCK, 2 * degree
    if not _is_enough(high, degree, modulus_bits, deviation):
        raise ValueError(f"no block size up to {high} is enough: the estimate says nothing about these parameters")
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _is_enough(middle, degree, modulus_bits, deviation) else (middle + 1, high)
    return {"block": low, "classical_bits": round(CLASSICAL * low, 1), "quantum_bits": round(QUANTUM * low, 1)}


def _is_enough(block: int, degree: int, modulus_bits: int, deviation: float) -> bool:
    log_delta = log2(block / (2 * pi * e) * (pi * block) ** (1 / block)) / (2 * (block - 1))
    target = log2(deviation * sqrt(block))
    return any(
        target <= (2 * block - dimension) * log_delta + modulus_bits * (dimension - degree - 1) / dimension
        for dimension in range(max(block, degree + 2), 3 * degree + 2)
    )

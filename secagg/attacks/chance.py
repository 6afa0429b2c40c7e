"""The adversary's own randomness, from the bytes it is given: it protects nobody, and repeats if the bytes repeat."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dp import FloatMatrix, RandomBytes

try:
    import torch
except ImportError as missing:
    raise ImportError("the red team needs PyTorch: pip install 'secagg[torch]'") from missing


def generator(rand: RandomBytes) -> torch.Generator:
    """A torch generator seeded with eight of the bytes."""
    return torch.Generator().manual_seed(int.from_bytes(rand(8), "little") >> 1)


def normal(shape: tuple[int, ...], *, rand: RandomBytes) -> FloatMatrix:
    """Standard normal float64 numbers."""
    drawn: FloatMatrix = torch.randn(shape, generator=generator(rand), dtype=torch.float64).numpy()
    return drawn


def uniform(shape: tuple[int, ...], *, rand: RandomBytes) -> NDArray[np.float64]:
    """Uniform float64 numbers in [0, 1), 32 random bits each."""
    words = np.frombuffer(rand(4 * math.prod(shape)), dtype="<u4")
    return (words * 2.0**-32).reshape(shape)


def order(count: int, *, rand: RandomBytes) -> NDArray[np.int64]:
    """A random order of range(count)."""
    drawn: NDArray[np.int64] = torch.randperm(count, generator=generator(rand)).numpy()
    return drawn

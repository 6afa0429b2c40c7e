"""The rotation is orthogonal, the same at all parties, and spreads whatever was not chosen against it."""

from __future__ import annotations

import math
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dp.rotation import LABEL, Rotation, spread

SEED = b"round 7"
lengths = st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 1000, 1024, 2047, 4097]))


def matrix_of(length: int, seed: bytes = SEED) -> np.ndarray:
    """An independent build: dense Hadamard windows, signs read bit by bit."""
    window = 2 ** math.floor(math.log2(length))
    keystream = Cipher(AES256(sha256(LABEL + seed).digest()), CTR(bytes(16))).encryptor()
    dense = np.eye(length)
    for start in (0,) if window == length else (0, length - window):
        stream = keystream.update(bytes((window + 7) // 8))
        signs = [-1.0 if stream[i // 8] >> (7 - i % 8) & 1 else 1.0 for i in range(window)]
        step = np.eye(length)
        block = slice(start, start + window)
        step[block, block] = scipy.linalg.hadamard(window) @ np.diag(signs) / math.sqrt(window)
        dense = step @ dense
    return dense


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 31, 32, 33, 64, 100, 255, 1024])
def test_it_is_the_matrix_that_it_says(length):
    dense = matrix_of(length)
    rotation = Rotation(length, seed=SEED)
    rotated = np.stack([rotation.apply(unit) for unit in np.eye(length)], axis=1)
    np.testing.assert_allclose(rotated, dense, atol=1e-12)
    restored = np.stack([rotation.invert(unit) for unit in np.eye(length)], axis=1)
    np.testing.assert_allclose(restored, dense.T, atol=1e-12)
    np.testing.assert_allclose(dense @ dense.T, np.eye(length), atol=1e-12)


@settings(deadline=None)
@given(st.data(), lengths, st.binary(max_size=40))
def test_norms_stay_and_the_inverse_brings_every_vector_back(data, length, seed):
    vector = data.draw(arrays(np.float64, length, elements=st.floats(-1e100, 1e100)))
    rotation = Rotation(length, seed=seed)
    scale = float(np.abs(vector).max()) * math.sqrt(length)
    rotated = rotation.apply(vector)
    assert rotated.shape == (length,)
    np.testing.assert_allclose(np.linalg.norm(rotated), np.linalg.norm(vector), atol=1e-13 * scale)
    np.testing.assert_allclose(rotation.invert(rotated), vector, atol=1e-13 * scale)
    np.testing.assert_allclose(rotation.apply(rotation.invert(vector)), vector, atol=1e-13 * scale)


@settings(deadline=None)
@given(lengths, st.integers(0, 2**32))
def test_a_rotated_sum_is_the_sum_of_rotated_vectors(length, key):
    first, second = np.random.default_rng(key).normal(size=(2, length))
    rotation = Rotation(length, seed=SEED)
    np.testing.assert_allclose(
        rotation.apply(first) + rotation.apply(second), rotation.apply(first + second), atol=1e-12
    )


def test_arguments_are_left_as_they_are():
    vector = np.arange(5.0)
    rotation = Rotation(5, seed=SEED)
    rotation.apply(vector)
    rotation.invert(vector)
    assert vector.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_all_parties_turn_alike_and_rounds_differ():
    program = (
        "import numpy; from dp.rotation import Rotation; print(Rotation(9, seed=b'x').apply(numpy.ones(9)).tolist())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    here = Rotation(9, seed=b"x").apply(np.ones(9))
    np.testing.assert_allclose(eval(printed.stdout), here, atol=1e-12)
    assert np.abs(here - Rotation(9, seed=b"y").apply(np.ones(9))).max() > 0.1


@pytest.mark.parametrize("length", [256, 300, 511])
@pytest.mark.parametrize("shape", ["first", "last", "middle", "constant", "heavy"])
def test_the_tail_is_the_promised_one(length, shape):
    """Over many seeds, coordinates of a fixed vector pass t no more often than 2 exp(-t² N / 2 norm²)."""
    vector = {
        "first": np.eye(length)[0],
        "last": np.eye(length)[-1],
        "middle": np.eye(length)[length // 2],
        "constant": np.ones(length),
        "heavy": 0.9 ** np.arange(length),
    }[shape]
    vector = vector / np.linalg.norm(vector)
    rounds = 400
    rotated = np.stack([Rotation(length, seed=bytes([n % 256, n // 256])).apply(vector) for n in range(rounds)])
    scaled = np.abs(rotated) * math.sqrt(spread(length))
    for tail in (2.0, 3.0, 4.0):
        allowed = 2 * math.exp(-(tail**2) / 2)
        # Coordinates of one seed depend on each other, seeds do not.
        assert np.mean(scaled > tail) <= allowed + 5 * math.sqrt(allowed / rounds)
    assert abs(np.mean(rotated**2) * length - 1) < 1e-9  # the norm is 1


@pytest.mark.parametrize("length", [1, 2, 3, 1000, 2**20 - 1, 2**20])
def test_more_than_half_of_the_coordinates_share_the_load(length):
    assert length / 2 < spread(length) <= length
    assert spread(length).bit_count() == 1


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_below_one_is_refused(length):
    with pytest.raises(ValueError, match=str(length)):
        Rotation(length, seed=SEED)


@pytest.mark.parametrize("shape", [(4,), (6,), (5, 1), ()])
def test_a_vector_of_another_shape_is_refused(shape):
    for turn in (Rotation(5, seed=SEED).apply, Rotation(5, seed=SEED).invert):
        with pytest.raises(ValueError, match="5 coordinates"):
            turn(np.zeros(shape))

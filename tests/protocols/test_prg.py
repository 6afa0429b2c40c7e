"""Mask expansion against one AES-256-CTR keystream over the whole vector, and exact integer addition."""

from collections.abc import Sequence

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.primitives import prg

from .oracles import load_vectors

DTYPES = ("<u2", "<u4", "<u8")
seeds = st.lists(st.binary(min_size=32, max_size=32), max_size=4)


def keystream(seed: bytes, size: int) -> bytes:
    return Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def masked(words: np.ndarray, *, add: Sequence[bytes], subtract: Sequence[bytes]) -> list[int]:
    """The same with Python integers."""
    modulus = 2 ** (8 * words.itemsize)
    total = [int(word) for word in words]
    for sign, sources in ((1, add), (-1, subtract)):
        for seed in sources:
            mask = np.frombuffer(keystream(seed, words.nbytes), dtype=words.dtype)
            total = [(a + sign * int(b)) % modulus for a, b in zip(total, mask, strict=True)]
    return total


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every loop of the module turn several times on short vectors."""
    monkeypatch.setattr(prg, "BLOCK_BYTES", 64)
    monkeypatch.setattr(prg, "SEEDS_AT_ONCE", 3)


@pytest.mark.parametrize("dtype", DTYPES)
class TestApplyMasks:
    @settings(max_examples=40)
    @given(add=seeds, subtract=seeds, length=st.integers(0, 70), seed=st.integers(0, 2**32))
    def test_equals_integer_arithmetic(
        self, dtype: str, add: list[bytes], subtract: list[bytes], length: int, seed: int
    ) -> None:
        words = np.frombuffer(np.random.default_rng(seed).bytes(length * np.dtype(dtype).itemsize), dtype=dtype).copy()
        expected = masked(words, add=add, subtract=subtract)
        prg.apply_masks(words, add=add, subtract=subtract)
        assert words.tolist() == expected

    @pytest.mark.usefixtures("small_blocks")
    @pytest.mark.parametrize("seed_count", [0, 1, 2, 3, 4, 6, 7, 10])
    def test_blocks_and_groups_of_seeds_do_not_show(self, dtype: str, seed_count: int) -> None:
        rng = np.random.default_rng(seed_count)
        all_seeds = [rng.bytes(32) for _ in range(seed_count)]
        add, subtract = all_seeds[::2], all_seeds[1::2]
        for length in (1, 7, 8, 31, 32, 33, 97):
            words = np.zeros(length, dtype=dtype)
            prg.apply_masks(words, add=add, subtract=subtract)
            assert words.tolist() == masked(np.zeros(length, dtype=dtype), add=add, subtract=subtract)

    @settings(max_examples=40)
    @given(data=st.data(), add=seeds, subtract=seeds)
    def test_any_partition_gives_the_bits_of_one_pass(
        self, dtype: str, data: st.DataObject, add: list[bytes], subtract: list[bytes]
    ) -> None:
        per_cipher_block = 16 // np.dtype(dtype).itemsize
        blocks = data.draw(st.integers(1, 12))
        length = blocks * per_cipher_block - data.draw(st.integers(0, per_cipher_block - 1))
        cuts = sorted(data.draw(st.sets(st.integers(1, blocks), max_size=4)))
        whole, parts = np.zeros(length, dtype=dtype), np.zeros(length, dtype=dtype)
        prg.apply_masks(whole, add=add, subtract=subtract)
        for start, stop in zip([0, *cuts], [*cuts, blocks], strict=True):
            prg.apply_masks(
                parts[start * per_cipher_block : stop * per_cipher_block],
                add=add,
                subtract=subtract,
                first_byte=16 * start,
            )
        assert (whole == parts).all()

    def test_crosses_the_real_block_size(self, dtype: str) -> None:
        words = np.zeros(prg.BLOCK_BYTES // np.dtype(dtype).itemsize + 5, dtype=dtype)
        seed = bytes(range(32))
        prg.apply_masks(words, add=[seed], subtract=[])
        assert words.tobytes() == keystream(seed, words.nbytes)

    def test_adding_and_subtracting_cancel(self, dtype: str) -> None:
        words = np.arange(1000, dtype=dtype)
        some = [bytes((i,)) * 32 for i in range(5)]
        prg.apply_masks(words, add=some, subtract=some[:2])
        prg.apply_masks(words, add=some[:2], subtract=some)
        assert (words == np.arange(1000, dtype=dtype)).all()

    def test_nist_sp_800_38a_f_5_5(self, dtype: str) -> None:
        vector = {name: bytes.fromhex(value) for name, value in load_vectors("nist_sp800_38a_ctr_aes256.json").items()}
        words = np.zeros(64 // np.dtype(dtype).itemsize, dtype=dtype)
        first_byte = 16 * int.from_bytes(vector["initial_counter"], "big")
        prg.apply_masks(words, add=[vector["key"]], subtract=[], first_byte=first_byte)
        plain, cipher = (np.frombuffer(vector[name], dtype=np.uint8) for name in ("plaintext", "ciphertext"))
        assert words.tobytes() == (plain ^ cipher).tobytes()

    @pytest.mark.parametrize("first_byte", [1, 8, 15, 17])
    def test_ranges_start_on_cipher_blocks(self, dtype: str, first_byte: int) -> None:
        words = np.zeros(4, dtype=dtype)
        with pytest.raises(ValueError, match="multiple of 16"):
            prg.apply_masks(words, add=[bytes(32)], subtract=[], first_byte=first_byte)
        assert not words.any()

    @pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
    @pytest.mark.parametrize("sign", ["add", "subtract"])
    def test_seeds_have_256_bits(self, dtype: str, size: int, sign: str) -> None:
        """16 and 24 bytes would be valid AES keys, of a weaker cipher."""
        words = np.zeros(4, dtype=dtype)
        lists = {"add": [bytes(32)], "subtract": [bytes(32)]}
        lists[sign].append(bytes(size))
        with pytest.raises(ValueError, match="32 bytes"):
            prg.apply_masks(words, add=lists["add"], subtract=lists["subtract"])
        assert not words.any()

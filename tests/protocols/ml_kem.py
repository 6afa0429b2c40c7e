"""ML-KEM-768 encapsulation with given randomness (FIPS 203), slow and obvious: an oracle, and bytes that repeat.

Algorithm numbers are those of the standard. `cryptography` has key generation and decapsulation, but draws the
randomness of an encapsulation itself.
"""

from __future__ import annotations

from hashlib import sha3_256, sha3_512, shake_128, shake_256

Q, N, K = 3329, 256, 3
DU, DV = 10, 4
Polynomial = list[int]


def _reversed_bits(value: int) -> int:
    return int(f"{value:07b}"[::-1], 2)


ZETAS = [pow(17, _reversed_bits(i), Q) for i in range(128)]
GAMMAS = [pow(17, 2 * _reversed_bits(i) + 1, Q) for i in range(128)]


def ntt(f: Polynomial) -> Polynomial:
    """Algorithm 9."""
    f, i, size = list(f), 1, 128
    while size >= 2:
        for start in range(0, N, 2 * size):
            for j in range(start, start + size):
                t = ZETAS[i] * f[j + size] % Q
                f[j], f[j + size] = (f[j] + t) % Q, (f[j] - t) % Q
            i += 1
        size //= 2
    return f


def ntt_inverse(f: Polynomial) -> Polynomial:
    """Algorithm 10."""
    f, i, size = list(f), 127, 2
    while size <= 128:
        for start in range(0, N, 2 * size):
            for j in range(start, start + size):
                t = f[j]
                f[j], f[j + size] = (t + f[j + size]) % Q, ZETAS[i] * (f[j + size] - t) % Q
            i -= 1
        size *= 2
    return [value * 3303 % Q for value in f]


def multiply(f: Polynomial, g: Polynomial) -> Polynomial:
    """Algorithms 11 and 12."""
    h = [0] * N
    for i in range(128):
        (a0, a1), (b0, b1) = f[2 * i : 2 * i + 2], g[2 * i : 2 * i + 2]
        h[2 * i : 2 * i + 2] = (a0 * b0 + a1 * b1 * GAMMAS[i]) % Q, (a0 * b1 + a1 * b0) % Q
    return h


def add(*terms: Polynomial) -> Polynomial:
    return [sum(values) % Q for values in zip(*terms, strict=True)]


def sample_ntt(seed: bytes) -> Polynomial:
    """Algorithm 7."""
    stream, values, at = shake_128(seed).digest(1344), [], 0
    while len(values) < N:
        b0, b1, b2 = stream[at : at + 3]
        values += [d for d in (b0 + 256 * (b1 % 16), b1 // 16 + 16 * b2) if d < Q]
        at += 3
    return values[:N]


def sample_cbd(data: bytes) -> Polynomial:
    """Algorithm 8 with eta = 2."""
    bits = [data[i // 8] >> i % 8 & 1 for i in range(8 * len(data))]
    return [(sum(bits[4 * i : 4 * i + 2]) - sum(bits[4 * i + 2 : 4 * i + 4])) % Q for i in range(N)]


def byte_encode(values: Polynomial, d: int) -> bytes:
    """Algorithm 5."""
    return sum(value << d * i for i, value in enumerate(values)).to_bytes(32 * d, "little")


def byte_decode(data: bytes, d: int) -> Polynomial:
    """Algorithm 6."""
    number = int.from_bytes(data, "little")
    return [number >> d * i & (1 << d) - 1 for i in range(N)]


def compress(values: Polynomial, d: int) -> Polynomial:
    """Section 4.2.1, (4.7): round(2^d / q x), halves up."""
    return [((value << d + 1) + Q) // (2 * Q) % (1 << d) for value in values]


def encapsulate(public: bytes, message: bytes) -> tuple[bytes, bytes]:
    """Algorithm 17: the shared secret and its ciphertext, for 32 random bytes."""
    shared, randomness = (digest := sha3_512(message + sha3_256(public).digest()).digest())[:32], digest[32:]
    return shared, encrypt(public, message, randomness)


def encrypt(public: bytes, message: bytes, randomness: bytes) -> bytes:
    """Algorithm 14."""

    def noise(counter: int) -> Polynomial:
        return sample_cbd(shake_256(randomness + bytes((counter,))).digest(128))

    t = [byte_decode(public[384 * i : 384 * i + 384], 12) for i in range(K)]
    rho = public[384 * K :]
    y = [ntt(noise(i)) for i in range(K)]
    u = [
        add(
            ntt_inverse(add(*(multiply(sample_ntt(rho + bytes((i, j))), y[j]) for j in range(K)))),
            noise(K + i),
        )
        for i in range(K)
    ]
    mu = [(bit * Q + 1) // 2 for bit in byte_decode(message, 1)]
    v = add(ntt_inverse(add(*(multiply(t[i], y[i]) for i in range(K)))), noise(2 * K), mu)
    return b"".join(byte_encode(compress(part, DU), DU) for part in u) + byte_encode(compress(v, DV), DV)

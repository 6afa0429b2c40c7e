"""Seeded faults: each makes a test fail, or the suite has a hole.

`python -m tests.deep.mutants` copies the packages and tests, first shows that the targets pass unchanged, then makes
one replacement at a time and runs them. Exit code 1: a fault was not noticed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("protocols", "dp", "secagg", "benchmarks", "tests", "pyproject.toml", "README.md", "ARCHITECTURE.md")
TARGETS = (
    "tests/protocols", "tests/adversary", "tests/conformance/test_vectors.py",
    "tests/conformance/test_sessions.py::TestMasterProperty",
    "tests/conformance/test_sessions.py::TestErasure",
)  # fmt: skip
CLIENT, SERVER = "protocols/pairwise/client.py", "protocols/pairwise/server.py"
PRIMITIVES = "protocols/primitives/"


@dataclass(frozen=True)
class Mutant:
    """One fault: `old` occurs once in the file and becomes `new`."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "a peer's bundle signature is not checked",
        CLIENT,
        'rules.roster.check_signature(peer, "KeyBundle", digest, bundle.signature)',
        "pass",
    ),
    Mutant("pair masks have the wrong sign", CLIENT, "(add if peer > self._me", "(add if peer < self._me"),
    Mutant(
        "the self mask is left out",
        CLIENT,
        "add = [self._rules.self_mask_seed(self._me, secrets.self_seed)]",
        "add = []",
    ),
    Mutant("own bundle may change", CLIENT, "if own != self._own_bundle:", "if own is None:"),
    Mutant("strangers are accepted", CLIENT, "        if strangers:\n", "        if strangers and not rules.roster:\n"),
    Mutant("serials may repeat", CLIENT, "self._policy.check_bundles(serials, self._history)", "pass"),
    Mutant("equal keys are accepted", CLIENT, "if len(set(public_keys)) != len(public_keys):", "if not public_keys:"),
    Mutant(
        "sets may be differenced",
        CLIENT,
        "self._policy.check_survivors(record.model, record.survivors, self._history)",
        "pass",
    ),
    Mutant(
        "no quorum of signatures",
        CLIENT,
        "rules.check_holders(rules.graph.holders(self._me), set(signers), self._phase)",
        "pass",
    ),
    Mutant(
        "shares of both kinds swapped",
        CLIENT,
        "pair[shamir.SHARE_BYTES :] if holder in alive",
        "pair[shamir.SHARE_BYTES :] if holder not in alive",
    ),
    Mutant("own secrets outlive the masking", CLIENT, "secrets.keep_only_held()", "pass"),
    Mutant(
        "keys are not burned before use",
        CLIENT,
        "return self._persist(self._burned(bundle), lambda: events)",
        "return events",
    ),
    Mutant("a client without itself among survivors goes on", CLIENT, "if self._me not in survivors or not", "if not"),
    Mutant("commitments are not checked", SERVER, "!= self._commitments[client]:", "is None:"),
    Mutant(
        "reconstructed keys are not checked",
        SERVER,
        "if mask_key.public != self._rules.bundles[client].mask_key:",
        "if False:",
    ),
    Mutant("another cohort is accepted", SERVER, "if message.cohort != self._cohort_digest:", "if False:"),
    Mutant("other views are accepted", SERVER, "if message.view != self._view:", "if False:"),
    Mutant(
        "clients may answer twice",
        SERVER,
        "if sender not in self._expected or sender in self._answered:",
        "if sender not in self._expected:",
    ),
    Mutant(
        "dropouts' masks are removed with the wrong sign",
        SERVER,
        "(subtract if client > peer else add)",
        "(subtract if client < peer else add)",
    ),
    Mutant(
        "the context forgets the keys",
        "protocols/pairwise/rules.py",
        "+ self.context + root).digest()",
        "+ self.context).digest()",
    ),
    Mutant(
        "channels have no direction",
        "protocols/pairwise/rules.py",
        'usage=b"pairwise/channel", ids=(sender, receiver)',
        'usage=b"pairwise/channel", ids=(0, 0)',
    ),
    Mutant(
        "halves are not bound to the shares",
        "protocols/pairwise/sealed.py",
        "associated=rules.context + sealed.ciphertext + sealed.half)",
        "associated=rules.context)",
    ),
    Mutant(
        "a half is anybody's",
        "protocols/pairwise/rules.py",
        'usage=b"pairwise/pair-half", ids=(client, peer)',
        'usage=b"pairwise/pair-half", ids=()',
    ),
    Mutant(
        "the threshold is one too low",
        "protocols/graph.py",
        "(holders + corrupt_holders) // 2 + 1)",
        "(holders + corrupt_holders) // 2)",
    ),
    Mutant(
        "the ring is always the same",
        "protocols/graph.py",
        'shake_256(b"secagg/v1/pairwise/graph" + seed)',
        'shake_256(b"secagg/v1/pairwise/graph")',
    ),
    Mutant(
        "encodings are not canonical", "protocols/wire.py", "if msgspec.msgpack.encode(message) != body:", "if False:"
    ),
    Mutant("low-order points are accepted", PRIMITIVES + "keys.py", "if u in _LOW_ORDER:", "if u in ():"),
    Mutant("non-canonical points are accepted", PRIMITIVES + "keys.py", "if u >= _FIELD_PRIME:", "if u < 0:"),
    Mutant(
        "the stream always starts at block 0",
        PRIMITIVES + "prg.py",
        "(first_byte // AES_BLOCK_BYTES).to_bytes",
        "(0).to_bytes",
    ),
    Mutant(
        "keys serve twice",
        "protocols/pairwise/one_time_keys.py",
        "pair, self._pair = self._pair, None",
        "pair = self._pair",
    ),
)


def misplaced() -> list[str]:
    """Mutants whose text does not occur exactly once: they would test nothing."""
    return [m.name for m in MUTANTS if (ROOT / m.file).read_text().count(m.old) != 1]


def passes(folder: Path) -> bool:
    """Whether the targets pass in a copy."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TARGETS]
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=900, check=False).returncode == 0


def main() -> int:
    """Runs them all."""
    if misplaced():
        print("not found exactly once:", *misplaced(), sep="\n  ")
        return 1
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for one in COPIED:
            source = ROOT / one
            ignore = shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, copy / one, ignore=ignore)
            else:
                shutil.copy(source, copy / one)
        if not passes(copy):
            print("the targets fail without any fault")
            return 1
        missed = []
        for number, mutant in enumerate(MUTANTS, 1):
            path = copy / mutant.file
            text = path.read_text()
            path.write_text(text.replace(mutant.old, mutant.new))
            caught = not passes(copy)
            path.write_text(text)
            print(f"{number}/{len(MUTANTS)} {'caught' if caught else 'MISSED'}: {mutant.name}", flush=True)
            missed += [] if caught else [mutant.name]
    print(f"{len(MUTANTS) - len(missed)} of {len(MUTANTS)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

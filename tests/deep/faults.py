"""Faults that the suite must notice, as data: what to replace, and which tests notice it.

Texts are short and stable, and occur once in their file. Targets are below `tests/`, as narrow as it takes for a fault
to cost seconds; a class rather than a test, so that a test may be renamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: what is wrong with the code then.
        file: where.
        old: occurs once in the file.
        new: what takes its place.
        targets: of these tests at least one fails.
    """

    name: str
    file: str
    old: str
    new: str
    targets: tuple[str, ...]


def _in(file: str, *faults: tuple[str, str, str, str], folder: str = "protocols") -> Iterator[Fault]:
    """Faults of one file: name, old, new, targets."""
    for name, old, new, targets in faults:
        yield Fault(name, f"{folder}/{file}", old, new, tuple(f"tests/{target}" for target in targets.split()))


KEYS, VIEWS, SHARES, HYBRID = (f"adversary/test_{name}.py::Test" for name in ("keys", "views", "shares", "hybrid"))
POLICY, ERASURE = "adversary/test_policy.py::Test", "conformance/test_sessions.py::TestErasure"
ROUNDS = "conformance/test_sessions.py::TestMasterProperty"
SNAPSHOT, FLOWER = "protocols/test_snapshot.py", "flower/test_rounds.py::Test"
PARTIES, SERVER = "one_shot/test_hostile_parties.py::TestServer", "one_shot/test_hostile_server.py::Test"
REMOVABLE = "protocols/test_removable.py"
UNUSABLE = "adversary/test_unusable_keys.py"

FAULTS = (
    *_in(
        "pairwise/client.py",
        (
            "a peer's bundle signature is not checked",
            'rules.roster.check_signature(peer, "KeyBundle", digest, bundle.signature)',
            "pass",
            KEYS + "Substitution",
        ),
        ("unusable keys are accepted", "keys.check_public_key(public, rules.suite)", "pass", UNUSABLE),
        ("own bundle may change", "if own != self._own_bundle:", "if own is None:", KEYS + "Lists"),
        ("strangers are accepted", "        if strangers:\n", "        if False:\n", KEYS + "Lists"),
        ("equal keys are accepted", "if not keys.all_distinct(public_keys):", "if False:", KEYS + "Duplicates"),
        (
            "serials may repeat",
            "self._policy.check_bundles(serials, self._history)",
            "pass",
            "adversary/test_replay.py",
        ),
        (
            "messages of another round are accepted",
            "if message.context != self._rules.context:",
            "if False:",
            "adversary/test_replay.py::TestDownwards",
        ),
        ("pair masks have the wrong sign", "(add if peer > self._me", "(add if peer < self._me", ROUNDS),
        (
            "the self mask is left out",
            "add = [self._rules.self_mask_seed(self._me, secrets.self_seed)]",
            "add = []",
            ROUNDS,
        ),
        (
            "no floor for the cohort",
            'rules.check_floor("shared keys", cohort, self._phase)',
            "pass",
            VIEWS + "Cohort",
        ),
        (
            "no floor for the survivors",
            'rules.check_floor("survived", survivors, self._phase)',
            "pass",
            VIEWS + "SurvivorList",
        ),
        (
            "too few holders survive",
            "rules.check_holders(rules.graph.holders(self._me), survivors, self._phase)",
            "pass",
            VIEWS + "SurvivorList",
        ),
        (
            "a client without itself among survivors goes on",
            "if self._me not in survivors or not",
            "if not",
            VIEWS + "SurvivorList",
        ),
        (
            "sets may be differenced",
            "self._policy.check_survivors(record.model, record.survivors, self._history)",
            "pass",
            POLICY + "Differencing",
        ),
        (
            "no quorum of signatures",
            "rules.check_holders(rules.graph.holders(self._me), set(signers), self._phase)",
            "pass",
            VIEWS + "Signatures",
        ),
        (
            "survivors' signatures are counted, not verified",
            'rules.roster.check_signature(signer, "ConsistencyCheck", digest, signature)',
            "pass",
            VIEWS + "Signatures",
        ),
        (
            "who is dead is the server's word at the end, not what was signed",
            "alive = frozenset(map(ClientId, self._survivors.tolist()))",
            "alive = frozenset(signers)",
            SHARES + "LyingHolder",
        ),
        (
            "shares of both kinds are swapped",
            "share(owner, int(owner in alive))",
            "share(owner, int(owner not in alive))",
            ROUNDS,
        ),
        ("one link too early is given up", "share(owner, 1 + first)", "share(owner, first)", REMOVABLE),
        (
            "dropouts' links are given up",
            "for owner in sorted(held) if owner in alive]",
            "for owner in sorted(held)]",
            REMOVABLE,
        ),
        (
            "keys are not burned before use",
            "return self._persist(self._burned(bundle), lambda: events)",
            "return events",
            POLICY + "Floors",
        ),
        ("everybody's keys are kept", "rules.narrow(self._me)", "pass", "protocols/test_client_memory.py"),
        (
            "the cohort may grow",
            "or not _within(compact, self._shown):",
            "or False:",
            VIEWS + "Cohort",
        ),
        ("own secrets outlive the masking", "secrets.keep_only_held()", "pass", ERASURE),
        (
            "all secrets outlive the answer",
            "        self._erase()\n        return self._persist(self._burned(later)",
            "        return self._persist(self._burned(later)",
            ERASURE,
        ),
    ),
    *_in(
        "pairwise/server.py",
        (
            "chains are not checked against their ends",
            "if chain[-1] != self._chain_ends[client]:",
            "if False:",
            "adversary/test_removable.py::TestLies",
        ),
        (
            "signatures of clients are not checked",
            "self._rules.roster.check_signature(sender, kind.__name__, frame.digest, frame.signature)",
            "pass",
            "deep/test_fuzz.py",
        ),
        (
            "unusable keys are shown to everybody",
            "keys.check_public_key(public, self._rules.suite)",
            "pass",
            KEYS + "Substitution",
        ),
        (
            "shares of a self seed are not checked against its commitment",
            "!= self._commitments[client]:",
            "is None:",
            SHARES + "LyingDealer",
        ),
        (
            "reconstructed keys are not checked",
            "if mask_key.public != self._rules.bundles[client].mask_key:",
            "if False:",
            SHARES + "LyingDealer",
        ),
        (
            "halves of dropouts are not checked",
            "rules.half_commitment(halves[client], client, peer) != commitment",
            "False",
            HYBRID + "Liar",
        ),
        (
            "another cohort is accepted",
            "if message.cohort != self._cohort_digest:",
            "if False:",
            VIEWS + "Cohort",
        ),
        ("other views are accepted", "if message.view != self._view:", "if False:", SHARES + "LyingHolder"),
        (
            "clients may answer twice",
            "if sender not in self._expected or sender in self._answered:",
            "if sender not in self._expected:",
            ROUNDS,
        ),
        (
            "dropouts' masks are removed with the wrong sign",
            "(subtract if client > peer else add)",
            "(subtract if client < peer else add)",
            ROUNDS,
        ),
        (
            "a rejected message has an effect",
            "        if not public_keys.isdisjoint(self._public_keys):",
            "        self._offered[client] = bundle\n        if not public_keys.isdisjoint(self._public_keys):",
            "deep/test_fuzz.py " + KEYS + "Duplicates",
        ),
        ("a finished server keeps shares", "                self._erase()\n", "                pass\n", ERASURE),
    ),
    *_in(
        "pairwise/rules.py",
        (
            "the context forgets the keys",
            "+ self.context + root).digest()",
            "+ self.context).digest()",
            "protocols/test_rules.py",
        ),
        (
            "a view forgets the cohort",
            "(sorted(cohort), sorted(survivors))",
            "(sorted(survivors),)",
            "protocols/test_rules.py",
        ),
        (
            "channels have no direction",
            'usage=b"pairwise/channel", ids=(sender, receiver)',
            'usage=b"pairwise/channel", ids=(0, 0)',
            "adversary/test_streams.py::TestSeals",
        ),
        (
            "a half is anybody's",
            'usage=b"pairwise/pair-half", ids=(client, peer)',
            'usage=b"pairwise/pair-half", ids=()',
            "protocols/test_rules.py " + HYBRID + "OneOfTwo conformance/test_vectors.py::TestRounds",
        ),
    ),
    *_in(
        "pairwise/sealed.py",
        (
            "halves are not bound to the shares",
            "associated=rules.context + sealed.ciphertext + sealed.half)",
            "associated=rules.context)",
            ROUNDS,
        ),
        (
            "halves are not checked by their readers",
            "if rules.half_commitment(opened, sender, receiver) != commitment:",
            "if False:",
            HYBRID + "Liar",
        ),
    ),
    *_in(
        "pairwise/one_time_keys.py",
        (
            "keys serve twice",
            "pair, self._pair = self._pair, None",
            "pair = self._pair",
            "protocols/test_one_time_keys.py",
        ),
    ),
    *_in("lifecycle.py", ("an aborted session keeps secrets", "        self._erase()\n", "        pass\n", ERASURE)),
    *_in(
        "policy.py",
        ("rounds may be joined twice", "if config.round_id in history.rounds:", "if False:", POLICY + "Floors"),
        (
            "a weaker suite is accepted",
            'in ("min_survivors", "corrupt_holders", "suite"):',
            'in ("min_survivors", "corrupt_holders"):',
            "protocols/test_policy.py::TestRound",
        ),
    ),
    *_in(
        "roster.py",
        (
            "a signature serves for any kind of message",
            "_SIGNATURE_LABEL + kind.encode() + digest",
            "_SIGNATURE_LABEL + digest",
            "protocols/test_roster.py::TestSignatures",
        ),
        (
            "bundles are not bound to the roster",
            "PROTOCOL, roster.digest)\n",
            "PROTOCOL)\n",
            "protocols/test_roster.py::TestBundles",
        ),
    ),
    *_in(
        "graph.py",
        (
            "the threshold is one too low",
            "(holders + corrupt_holders) // 2 + 1)",
            "(holders + corrupt_holders) // 2)",
            "adversary/test_threshold.py",
        ),
        (
            "the ring is always the same",
            'shake_256(b"secagg/v1/pairwise/graph" + seed)',
            'shake_256(b"secagg/v1/pairwise/graph")',
            "adversary/test_ring.py protocols/test_graph.py",
        ),
    ),
    *_in(
        "wire.py",
        (
            "encodings are not canonical",
            "if msgspec.msgpack.encode(message) != body:",
            "if False:",
            "protocols/test_wire.py",
        ),
        ("messages may have any size", "    if len(data) > limit:\n", "    if False:\n", "protocols/test_wire.py"),
    ),
    *_in(
        "primitives/keys.py",
        ("low-order points are accepted", "if u in _LOW_ORDER:", "if u in ():", "protocols/test_keys.py"),
        ("non-canonical points are accepted", "if u >= _FIELD_PRIME:", "if u < 0:", "protocols/test_keys.py"),
        (
            "keys of one round serve another",
            "salt=context, info=info",
            'salt=b"", info=info',
            "protocols/test_keys.py::TestDerive",
        ),
    ),
    *_in(
        "primitives/prg.py",
        (
            "the stream always starts at block 0",
            "(first_byte // AES_BLOCK_BYTES).to_bytes",
            "(0).to_bytes",
            "protocols/test_prg.py",
        ),
    ),
    *_in(
        "primitives/shamir.py",
        (
            "elements outside the field are accepted",
            "if (elements >= PRIME).any():",
            "if False:",
            "protocols/test_shamir.py::TestDecode",
        ),
        (
            "the first holder gets the secret itself",
            "np.arange(1, holders + 1, dtype=np.int64)",
            "np.arange(holders, dtype=np.int64)",
            "protocols/test_shamir.py",
        ),
    ),
    *_in(
        "primitives/key_shares.py",
        (
            "elements of ring keys' shares outside the field are accepted",
            "if (read >= PRIME).any():",
            "if False:",
            "protocols/test_key_shares.py",
        ),
    ),
    *_in(
        "one_shot/client.py",
        (
            "a member's bundle signature is not checked",
            "rules.roster.check_signature(\n                member,",
            "(\n                member,",
            SERVER + "Clients",
        ),
        (
            "unusable keys of members are accepted",
            "keys.check_public_key(bundle.key, rules.suite)",
            "pass",
            "one_shot/test_hybrid.py",
        ),
        (
            "serials of members may repeat",
            "self._policy.check_bundles(serials, self._history)",
            "pass",
            SERVER + "Clients",
        ),
        (
            "masks have no errors",
            "ring_mask.add_errors(words, seed=self._rand(SEED_BYTES))",
            "self._rand(SEED_BYTES)",
            PARTIES,
        ),
        ("vectors are not masked", "ring_mask.add_mask(words, key, seed=rules.matrix_seed)", "pass", PARTIES),
        (
            "a client keeps its keys",
            "            self._erase()\n",
            "",
            "one_shot/test_rounds.py::TestSessions",
        ),
    ),
    *_in(
        "one_shot/member.py",
        (
            "a member's own key may change",
            "if self._bundle not in message.bundles:",
            "if False:",
            "one_shot/test_crashes.py",
        ),
        (
            "signatures of contributions are not checked",
            "rules.roster.check_signature(client, signature_kind(Contribution), digest, sealed.signature)",
            "pass",
            SERVER + "Members",
        ),
        (
            "contributions to another round are opened",
            "if sealed.contribution.context != rules.context:",
            "if False:",
            SERVER + "Members",
        ),
        (
            "copies of a contribution are opened",
            'for name in ("ephemeral_key", "vector"):',
            "for name in ():",
            SERVER + "Copies",
        ),
        ("too few contributions are opened", "rules.check_floor(survivors, self._phase)", "pass", SERVER + "Members"),
        ("a client may be there twice", "        check_increasing(survivors)\n", "", SERVER + "Members"),
        (
            "sums may be differenced",
            "self._policy.check_survivors(record.model, record.survivors, self._history)",
            "pass",
            SERVER + "Policy",
        ),
        (
            "a member keeps its key",
            "        self._erase()\n        return self._persist(record",
            "        return self._persist(record",
            "one_shot/test_rounds.py::TestSessions",
        ),
        (
            "a member that complains keeps its key",
            "            self._erase()\n            rejected",
            "            rejected",
            SERVER + "Copies",
        ),
        (
            "a member answers before its record is durable",
            "return self._persist(record, lambda: self._answer(frame, later))",
            "return self._answer(frame, later)",
            "one_shot/test_crashes.py",
        ),
        (
            "the next bundle's serial is not burned",
            "if later else [sending]",
            "if False else [sending]",
            "one_shot/test_one_time_key.py::TestOnce",
        ),
        (
            "members complain about shares that the server exchanged",
            "if sha256(sealed.share).digest() != sealed.contribution.sealed[self._position]:",
            "if False:",
            "one_shot/test_blame.py::TestEvidence",
        ),
        (
            "shares need not be on a polynomial",
            "if not share_proof.fits(one.proof, share, challenge, at):",
            "if False:",
            "one_shot/test_blame.py::TestNamed",
        ),
    ),
    *_in(
        "one_shot/party.py",
        (
            "any committee will do",
            "policy.check_committee(self._rules.committee)",
            "pass",
            "one_shot/test_committee.py::TestPin",
        ),
    ),
    *_in(
        "one_shot/sealed.py",
        (
            "the KEM secret is not in the key",
            "rules.channel(agreed + secret, client, member)",
            "rules.channel(agreed, client, member)",
            "one_shot/test_hybrid.py",
        ),
    ),
    *_in(
        "one_shot/one_time_key.py",
        (
            "a key serves twice",
            "key, self._key = self._key, None",
            "key = self._key",
            "one_shot/test_one_time_key.py::TestOnce",
        ),
    ),
    *_in(
        "primitives/share_proof.py",
        (
            "proofs are not blinded",
            "rho @ one[:DEGREE] + one[DEGREE:]",
            "rho @ one[:DEGREE]",
            "protocols/test_share_proof.py",
        ),
    ),
    *_in(
        "one_shot/rules.py",
        (
            "the committee's threshold is one too low",
            "(2 * members + corrupt) // 3 + 1)",
            "(2 * members + corrupt) // 3)",
            "one_shot/test_config.py",
        ),
        (
            "the committee's keys are not in the context",
            "self.context + sha256(keys_of_round).digest()",
            "self.context",
            SERVER + "Separation",
        ),
        (
            "the matrix is always the same",
            'sha256(b"secagg/v1/one_shot/matrix" + self.context)',
            'sha256(b"secagg/v1/one_shot/matrix")',
            SERVER + "Separation",
        ),
        (
            "a sealed share is anybody's",
            'usage=b"one_shot/channel", ids=(client, member)',
            'usage=b"one_shot/channel", ids=()',
            SERVER + "Separation",
        ),
        (
            "a sealed share belongs to any vector",
            "(self.context, client, member, ephemeral_key, vector)",
            "(self.context, client, member, ephemeral_key)",
            SERVER + "Separation",
        ),
        (
            "a client can choose its shares after the challenge",
            "(client, ephemeral_key, vector, sealed))",
            "(client, ephemeral_key, vector))",
            "one_shot/test_blame.py::TestProof",
        ),
        (
            "outsiders are on the committee",
            "if not set(self.config.committee) >= set(members):",
            "if False:",
            SERVER + "Clients",
        ),
    ),
    *_in(
        "one_shot/server.py",
        (
            "forged contributions are added",
            "rules.roster.check_signature(sender, signature_kind(Contribution), frame.digest, frame.signature)",
            "pass",
            PARTIES,
        ),
        (
            "answers for other survivors are accepted",
            "if frame.message.view != self._rules.view(self._received):",
            "if False:",
            PARTIES,
        ),
        ("copies are added", "if unique & self._seen:", "if False:", SERVER + "Copies"),
        (
            "members may answer twice",
            "if sender not in self._expected or sender in self._answered:",
            "if sender not in self._expected:",
            PARTIES,
        ),
        (
            "errors may have any size",
            "if int(errors.min()) < half - bound or int(errors.max()) > half + bound:",
            "if False:",
            PARTIES,
        ),
        (
            "complaints may be about anything",
            "if any(known.get(ClientId(one.client)) != one.contribution for one in accused):",
            "if False:",
            "one_shot/test_blame.py::TestServer",
        ),
        (
            "members may count their bundles again",
            "if bundle.serial <= self.serials.get(member, 0):",
            "if False:",
            "one_shot/test_committee.py::TestLostHistory",
        ),
        ("canaries are not looked at", "if words[config.length :].any():", "if False:", PARTIES),
    ),
    *_in(
        "one_shot/wire.py",
        (
            "shares need not be those that were signed",
            "if sealed_digests(sealed) != head.message.sealed or",
            "if",
            "one_shot/test_rounds.py::TestFaults",
        ),
    ),
    *_in(
        "snapshot.py",
        ("a sealed session lives on", "    session._abort()\n    return sealed", "    return sealed", SNAPSHOT),
        (
            "a session that owes a record is sealed",
            "if session.phase not in AT_REST or session._after_persist is not None or secrets is None:",
            "if session.phase not in AT_REST or secrets is None:",
            SNAPSHOT,
        ),
        (
            "a snapshot opens in any context",
            'associated=_LABEL + what + b"/" + context)\n    return msgspec',
            'associated=_LABEL + what + b"/a test")\n    return msgspec',
            SNAPSHOT,
        ),
        ("sealed keys stay here", "    one_time.take()\n", "", SNAPSHOT),
        ("anybody may take a session up", "if roster.get(me) != identity.public:", "if False:", SNAPSHOT),
    ),
    *_in(
        "adapters/flower/node.py",
        (
            "a key can be taken twice",
            "UPDATE sealed SET key = NULL,",
            "UPDATE sealed SET key = key,",
            "flower/test_node.py::TestVault",
        ),
        (
            "deleted keys stay in the file",
            "PRAGMA secure_delete = ON",
            "PRAGMA secure_delete = OFF",
            "flower/test_node.py::TestVault",
        ),
        ("numbers come again", "PRIMARY KEY AUTOINCREMENT", "PRIMARY KEY", "flower/test_node.py::TestVault"),
        (
            "a round that broke off is free",
            "in unsent else self.ledger.charge",
            "in unsent else self.ledger.release",
            FLOWER + "Budget",
        ),
        (
            "a round that broke off is charged in any case",
            "settle = self.ledger.release if",
            "settle = self.ledger.charge if",
            FLOWER + "Budget",
        ),
        ("what was left behind is forgotten", "        self._settle_left_behind()\n", "", FLOWER + "Budget"),
        (
            "a lost ledger is replaced",
            "if not path.exists() and not self._history.history.rounds:",
            "if not path.exists():",
            "flower/test_node.py::TestEnrolment",
        ),
        (
            "a session goes on under another configuration",
            "return self.config.digest() + self._owner(number)",
            "return self._owner(number)",
            "flower/test_hostile.py::TestLyingServer",
        ),
        folder="secagg",
    ),
    *_in(
        "adapters/flower/mod.py",
        (
            "any model is trained",
            "if client.config.layout.model_digest(arrays) != model:",
            "if False:",
            "flower/test_hostile.py::TestLyingServer",
        ),
        (
            "each client may be told something else",
            "if instructions_of(message.content) != self._instructions:",
            "if False:",
            "flower/test_hostile.py::TestLyingServer",
        ),
        (
            "the server's terms are not compared",
            'self._node.agreement.check(field(self._record, "agreement", str))',
            "pass",
            "flower/test_hostile.py::TestLyingServer",
        ),
        ("errors of the train function are quoted", "with _Unquoted():", "if True:", FLOWER + "Dropouts"),
        (
            "unusable values are quoted",
            "except UnsafeUpdateError as error:",
            "except ZeroDivisionError as error:",
            FLOWER + "Dropouts",
        ),
        (
            "a failed round leaves its reservation",
            "                self._client.leave()\n",
            "                pass\n",
            FLOWER + "Budget",
        ),
        (
            "plain messages are trained",
            'if record is None or message.metadata.message_type.partition(".")[0] != "train":',
            "if record is None:\n                return call_next(message, context)\n            if False:",
            FLOWER + "UnmodifiedStrategies",
        ),
        folder="secagg",
    ),
    *_in(
        "adapters/flower/grid.py",
        (
            "any strategy is taken",
            "if not isinstance(strategy, FedAvg) or owner not in SUMMING:",
            "if False:",
            FLOWER + "UnmodifiedStrategies",
        ),
        ("keys in advance serve on", "owner._bundles = {}", "pass", FLOWER + "Dropouts"),
        (
            "the update is not added to the model",
            "array + result.mean[name]",
            "result.mean[name]",
            FLOWER + "UnmodifiedStrategies",
        ),
        folder="secagg",
    ),
)

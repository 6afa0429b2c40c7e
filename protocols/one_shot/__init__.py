"""One message per client: ring-LWE masks whose keys are shared to a small committee.

Experimental, for three reasons. The lattice parameters (N = 2048, q = 2^32, standard deviation 4.47) still need the
lattice estimator, for masks whose summed keys and errors are known. The written argument (`protocols/SPEC.md`, section
17) is under review. So are patents: US 20250358106 and possible filings on OPA.

The shape is that of OPA (Karthikeyan and Polychroniadou, CRYPTO 2025), with Shamir's sharing in place of homomorphic
encryption. Messages are in `wire.py`, configuration and transitions in `rules.py`.

1. MemberKeys, member to server: a fresh public key, signed. Serial and round are burned first.
2. Committee, server to all clients: the keys of the members that are there, at least t.
3. Contribution, client to server, its only message: y = A s + e + 2^tau x modulo 2^32; for each member, sealed, a share
   of s; a proof that these shares are on a polynomial. Checked before: round, floors and committee against its policy;
   the members are those of the configuration, their signatures verify, no serial was seen before.
4. UnmaskRequest, server to members: every contribution without its vector, with the share sealed to this member.
5. PartialSum, member to server: the sum of the shares, and the digest of round and survivors. Checked before: its own
   key is as it advertised it; every contribution is of this round, signed by an enrolled client, no copy of another
   one, and its share is the one that was signed; floors; differencing against all sets it opened before on this model
   (recorded before it answers); every share opens and is on the polynomial. Then its key is erased: it speaks once.
   Complaint, instead of the sum, if a share does not open, or is off: it names the clients, and says nothing else.

Why it holds:

- The server learns shares of sums alone: a member's answer is one point of the sum of polynomials. From t answers on
  the same survivors it interpolates the sum of the keys, and nothing else.
- Split views. With 3t > 2m + c whatever sets the server shows to the members, their answers together are worth one sum
  at most (`rules.least_threshold` has the argument). So no round of agreement is needed.
- `ctx = SHA-256(round, members' keys)` enters every key and signature: a client with another model, configuration or
  view of the committee makes a contribution that no honest member takes for one of this round.
- A sealed share belongs to one client, one member and one masked vector: copied under another name it does not open.
- The result is exact or an error: answers that fit no polynomial are located while there are spare ones, and any sum of
  keys but the true one leaves errors that are too large, or canaries that are not zero, but for a chance below 2^-64.
  That holds for lies that are not computed from the public matrix; for small vectors such lies need spare answers.
- Blame. A complaint costs one answer. If too few are left, or they open nothing, the error (`BadShareError`) names each
  sender and receiver: what the two signed contradicts, so one of them lies. Nothing is
  opened to find out which, so no lie opens an honest share; and no server makes honest parties accuse each other, since
  a member complains only about bytes that the client signed.
- Members' keys may come in advance, attached to the answer of an earlier round (`OneTimeKey`). Then a round is two
  trips: one to the clients, one to the committee.

- The committee is pinned. A client joins no round whose members, or their identities, are not those of its own policy:
  a server that proposes others gets a `PolicyRefusal`.
- A member whose history is lost does not stall rounds. It advertises a serial that clients have seen; a server that
  remembers serials (`OneShotServer.serials`) rejects it by name and goes on with the others.

What the driver must add: one open session for each identity, role and history.

What it does not give: a malicious client can void a round, or bias the sum. It is named if its shares are bad, not if
its mask does not belong to the key that it shared. Clients are not told the survivors: a client's budget stays charged
at the floor.
"""

from ..errors import BadShareError
from .client import OneShotClient
from .member import OneShotMember
from .one_time_key import OneTimeKey
from .rules import OneShotConfig, committee_digest
from .server import OneShotServer

__all__ = [
    "BadShareError",
    "OneShotClient",
    "OneShotConfig",
    "OneShotMember",
    "OneShotServer",
    "OneTimeKey",
    "committee_digest",
]

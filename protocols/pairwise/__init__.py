"""SecAgg and SecAgg+: pairwise masks with secret-shared keys, safe against a server that cheats.

One implementation, two graphs: the complete graph is SecAgg (Bonawitz et al., CCS 2017, figure 4, active-adversary
form), a k-regular ring is SecAgg+ (Bell et al., CCS 2020). Messages are in `wire.py`, transitions in `session.py`,
refusals beyond the protocol in `policy.py`.

What a client sends, and what it checked before:

1. AdvertiseKeys: two public keys, signed. Checked: the round, against its policy.
2. ShareKeys: for each neighbour, sealed, a share of its mask key and a share of its self seed; a commitment to the self
   seed. Checked: its own bundle is unchanged, everybody is on the roster, its neighbours' signatures verify, all keys
   are distinct, no serial was seen before, floors. (A forged bundle makes its neighbours refuse, and the gap that they
   leave cannot be unmasked around.)
3. MaskedInput: vector + PRG(self seed) +- PRG(pair seed) for each neighbour. Checked: it is in the cohort, every sealed
   share opens now, floors.
4. ConsistencyCheck: a signature over (cohort, survivors). Checked: it survived, the survivors are in the cohort,
   floors, differencing.
5. Unmask: for each cohort member it holds shares of, one share: of its self seed if alive, of its mask key if not.
   Checked: at least t of its co-holders signed exactly its own view.

Why it holds:

- Survivor set and dropouts are one list: no message can name a client both alive and dead, and a client answers once.
  With 2t > holders + corrupt holders the server never gets t shares of both secrets of one client, so a vector stays
  masked by its self seed or by a pair seed.
- A client answers only if t of its holders signed the same *whole* survivor set as it saw. On the complete graph that
  leaves one set for everybody. On a ring, regions far apart may be shown different sets; where two of them meet clients
  find no t signers and refuse, as at a cut of the ring (`graph`, rule 2), and no secret gets t shares of both kinds.
  That this opens no sum over one region is argued and tried by tests, not proven.
- `ctx = SHA-256(round, bundle root)` enters every key after AdvertiseKeys: shown different keys or parameters, clients
  derive different keys and nothing opens.
- Signatures do not make shares right: the server checks that a reconstructed mask key has the advertised public key,
  and a self seed its commitment.
"""

from .client import PairwiseClient
from .one_time_keys import OneTimeKeys
from .rules import round_context
from .server import PairwiseServer

__all__ = ["OneTimeKeys", "PairwiseClient", "PairwiseServer", "round_context"]

"""The bridge to Opacus: per-record gradients become noised integers, inside the user's own training loop.

Opacus computes per-record gradients and drives the loop. Clipping ends in our integer check; noise and accounting are
ours. Rules:

- With `rounding="exact"` every record is clipped, rounded and checked on its own: its integers have norm at most
  `int_bound`, exactly. With `rounding="sum"` ghost clipping adds up the clipped gradients, and the sum is rounded once,
  by a bound that is proved in `ghost` and rests on floats. A record whose gradient is not finite counts as zero,
  locally: a refusal that others can see would tell them about it.
- With a `LocalRecordLevel` unit a client makes the same steps alone, with all the noise in its own share.
- Removing a record must change nothing else. A float kernel may give a record other last bits when the batch has
  another shape or order, so in training every batch is laid out in a fixed number of rows, records in random ones, the
  others blank. What is assumed of PyTorch is that in batches of equal shape a row's gradient does not depend on the
  values in other rows: `require_independent_rows` tries it out.
- For the same reason the loss must be a sum: a mean divides every record's gradient by the size of the secret batch.
- One round is one logical batch, one contribution, one event. It is accounted at its worst case before noise is drawn
  and corrected to the actual survivors when the aggregate is applied; a round that dies stays charged.
- Batches are drawn by our secure generator, never by PyTorch's, and an empty batch still sends its noise.
- One accountant for the life of a client. Within a process it is found again by the data set; across processes, save
  its `state_dict`.

Sources: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016 (per-record clipping, random batches);
Yousefpour et al., "Opacus: User-Friendly Differential Privacy Library in PyTorch", 2021.

Example, in which `send` carries one vector into a round of the federation and returns the sum and the number of
survivors:

    engine = SecurePrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader, aggregate=send, loss_reduction="sum",
        unit=RecordLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=200, sampling_rate=0.1, records=20_000),
        clients=20, min_survivors=15, max_colluders=2,
    )
    for features, labels in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(features), labels, reduction="sum").backward()
        optimizer.step()
    engine.get_epsilon(1e-6)
"""

try:
    import opacus  # noqa: F401
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("record-level privacy needs PyTorch and Opacus: pip install 'secagg[torch]'") from error

from .accountant import SkellamAccountant
from .batches import FixedRows, SecretPoissonSampler
from .engine import SecurePrivacyEngine
from .ghost import GhostLoss, GhostRows
from .optimizer import Aggregate, SecureDPOptimizer
from .selftest import require_independent_rows

__all__ = [
    "Aggregate",
    "FixedRows",
    "GhostLoss",
    "GhostRows",
    "SecretPoissonSampler",
    "SecureDPOptimizer",
    "SecurePrivacyEngine",
    "SkellamAccountant",
    "require_independent_rows",
]

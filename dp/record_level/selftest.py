"""A check, on this machine and this model, of what fixed rows assume of PyTorch.

Both roundings rest on one assumption about floats: in batches of equal shape, a row's gradient does not depend on what
is in the other rows. A kernel could break it, so it can be tried out before training. Inputs are made up: an outcome
that depended on records would tell about them.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import UnaccountableError
from ..samplers import secure_random
from .batches import FixedRows, map_tensors, random_places


def sum_of_squares(outputs: object) -> Tensor:
    """A loss of any outputs."""
    parts: list[Tensor] = []

    def add(tensor: Tensor) -> Tensor:
        parts.append(tensor.square().sum())
        return tensor

    map_tensors(add, outputs)
    return torch.stack(parts).sum()


def require_independent_rows(
    module: nn.Module, *inputs: Tensor, rows: int, loss: Callable[[object], Tensor] = sum_of_squares
) -> None:
    """Take every record out of a batch in turn, and compare the gradients of the others to the last bit.

    Args:
        module: The model; it is copied.
        inputs: What it is called with: made-up records, one per row, at most `rows`.
        rows: Rows of a training batch, as `physical_batch_size`.
        loss: Of the outputs, a sum over records.

    Raises:
        UnaccountableError: A gradient changed: on this machine neither rounding bounds what one record changes.
        ValueError: There are no records, or more than rows.
    """
    count = len(inputs[0]) if inputs else 0
    if not 1 <= count <= rows:
        raise ValueError(f"there must be 1 to {rows} records, got {count}")
    probe = FixedRows(copy.deepcopy(module).train(), rows=rows)
    places = torch.from_numpy(random_places(count, rows, rand=secure_random()))
    generator = torch.get_rng_state()

    def gradients(members: list[int]) -> Tensor:
        torch.set_rng_state(generator)  # dropout draws the same masks each time
        outputs = probe.run_placed(tuple(value[members] for value in inputs), {}, places=places[members], total=rows)
        torch.autograd.backward(loss(outputs))
        trained = [parameter for parameter in probe.parameters() if parameter.requires_grad]
        flat = torch.cat([parameter.grad_sample.flatten(1) for parameter in trained], dim=1)
        probe.zero_grad()
        return flat[places[members]]

    everyone = list(range(count))
    together = gradients(everyone)
    for removed in everyone:
        others = [record for record in everyone if record != removed]
        if not torch.equal(together[others], gradients(others)):
            raise UnaccountableError(
                f"removing record {removed} of {count} changed the gradients of others in a batch of {rows} rows: set "
                "another physical_batch_size, fewer threads or deterministic algorithms"
            )

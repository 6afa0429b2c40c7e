"""PyTorch models as named arrays, and back.

Only trainable parameters travel. Buffers (running means of BatchNorm, say) are statistics of a client's data that no
clip bounds, so models that have floating-point buffers are refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

try:
    import torch
    from torch import nn
except ImportError as error:
    raise ImportError("PyTorch models need PyTorch: pip install 'secagg[torch]'") from error


def parameters_of(model: nn.Module) -> dict[str, NDArray[np.floating]]:
    """Copies of a model's trainable parameters, by name, in the model's order.

    Raises:
        ValueError: the model has floating-point buffers, which cannot be released.
    """
    buffers = [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]
    if buffers:
        raise ValueError(
            f"buffers {buffers} hold statistics of the data that nothing bounds: use GroupNorm for BatchNorm"
        )
    return {name: parameter.detach().cpu().numpy().copy() for name, parameter in _trainable(model).items()}


def load_parameters(model: nn.Module, arrays: Mapping[str, NDArray[np.floating]]) -> None:
    """Sets the trainable parameters of a model.

    Raises:
        ValueError: names differ from the model's.
    """
    parameters = _trainable(model)
    if parameters.keys() != arrays.keys():
        raise ValueError(f"the model trains {sorted(parameters)}, got {sorted(arrays)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(arrays[name]))


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that travel, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

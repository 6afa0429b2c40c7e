"""Trap weights: a first layer whose units fire rarely, so that many of them catch one picture alone.

Rules:

1. As with `imprint`, the server sends one malicious model to everybody and reads the sum.
2. Rows are random; each bias is set so that a row fires for one public picture in `batch`. A unit that fired for a
   single picture holds it exactly, as weight gradient over bias gradient; one that fired for several holds a blend.
3. Blends are told apart without the truth: two units that caught the same picture alone agree, blends do not.

Sources: Boenisch et al. 2023 ("When the Curious Abandon Honesty", arXiv 2112.02918); biases from quantiles, Nowak et
al. 2024 ("QBI", arXiv 2406.18745).

Example::

    planted = trap_model(public_images, units=500, batch=100, classes=10, rand=os.urandom)  # send `planted.model`
    found = trap(view, planted)
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dp import RandomBytes

from .chance import normal
from .views import Observed, flat

try:
    import torch
    from torch import nn
except ImportError as missing:
    raise ImportError("the red team needs PyTorch: pip install 'secagg[torch]'") from missing

Images = NDArray[np.float64]

_AGREE = 0.02  # root mean square difference of two units that caught one picture
_QUIET = 1e-6  # of the largest bias gradient: the unit fired for nobody


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trap:
    """A planted model: inputs flattened, the planted layer, ReLU, a head.

    Attributes:
        model: what clients get.
        units: rows of the planted layer.
        input_shape: shape of one picture.
    """

    model: nn.Module
    units: int
    input_shape: tuple[int, ...]


def trap_model(public: Images, *, units: int, batch: int, classes: int, rand: RandomBytes) -> Trap:
    """Plants the layer.

    Args:
        public: float64[m, ...], public pictures.
        units: rows of the planted layer.
        batch: pictures that are expected in the sum.
        classes: outputs of the head.
        rand: bytes for rows and head.

    Raises:
        ValueError: there are not two public pictures, or `units` or `batch` is below 1.
    """
    if len(public) < 2 or min(units, batch) < 1:
        raise ValueError(f"{len(public)} public pictures, units = {units} and batch = {batch} make no trap")
    pixels = int(np.prod(public.shape[1:]))
    rows = normal((units, pixels), rand=rand)
    response = public.reshape(len(public), pixels) @ rows.T
    # A normal law extends the quantiles beyond the few public pictures.
    reach = NormalDist().inv_cdf(1 - 1 / (batch + 1))
    biases = -(response.mean(axis=0) + reach * response.std(axis=0))
    planted, head = nn.Linear(pixels, units), nn.Linear(units, classes)
    with torch.no_grad():
        planted.weight.copy_(torch.from_numpy(rows))
        planted.bias.copy_(torch.from_numpy(biases))
        head.weight.copy_(torch.from_numpy(normal((classes, units), rand=rand) / np.sqrt(units)))
        head.bias.zero_()
    return Trap(model=nn.Sequential(nn.Flatten(), planted, nn.ReLU(), head), units=units, input_shape=public.shape[1:])


def trap(view: Observed, knowledge: Trap, *, rand: RandomBytes | None = None) -> Images:
    """Reads the pictures out of a sum of gradients.

    Args:
        view: the gradient of the planted model summed over any number of pictures, or any multiple of it.
        knowledge: the planted model.
        rand: not used; every attack takes it.

    Returns:
        float64[m, *input_shape] in [0, 1]: pictures that two units agree on first, then the others.

    Raises:
        ValueError: the view does not fit the model.
    """
    units, pixels = knowledge.units, int(np.prod(knowledge.input_shape))
    vector = flat(view)
    if len(vector) < units * (pixels + 1):
        raise ValueError(f"the view has {len(vector)} coordinates, the planted layer alone {units * (pixels + 1)}")
    weights = vector[: units * pixels].reshape(units, pixels)
    biases = vector[units * pixels : units * (pixels + 1)]
    fired = np.abs(biases) > _QUIET * np.abs(biases).max(initial=0.0)
    caught = (weights[fired] / biases[fired, None]).clip(0, 1)
    unique: list[NDArray[np.float64]] = []
    agreed: list[bool] = []
    for picture in caught:
        distance = [float(np.sqrt(np.square(picture - other).mean())) for other in unique]
        if distance and min(distance) < _AGREE:
            agreed[int(np.argmin(distance))] = True
        else:
            unique.append(picture)
            agreed.append(False)
    ranked = sorted(range(len(unique)), key=lambda index: not agreed[index])
    return np.array([unique[index] for index in ranked]).reshape(-1, *knowledge.input_shape)

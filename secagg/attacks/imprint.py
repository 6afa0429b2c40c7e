"""The imprint attack: a planted layer that sorts pictures into bins, so that the sum of many clients falls apart.

Rules:

1. The server sends *the same* planted model to everybody. Masking hides who sent what, nothing else: the attack reads
   the sum. Binding the model changes nothing either. Only noise, or a client that looks at the model, stops it.
2. Every row of the planted layer measures the same thing, the mean brightness, and row i fires above the i-th quantile
   of public pictures. The difference of neighbouring rows' gradients then holds the pictures of one bin alone; a bin
   with one picture gives it away exactly, as weight gradient over bias gradient.
3. `sparse` is the form that adapts to clipping and noise: row i fires *inside* its bin only, so that a picture spends
   its client's whole clip norm on one row; and the brightness of the bin replaces the noisy bias gradient. Against
   noise, either form ends in a Wiener filter that knows the mean and covariance of public pictures: the more noise, the
   closer the answer to the mean picture.
4. With n pictures and k equally likely bins, n(1 - 1/k)^(n - 1) pictures are expected to be alone.

Sources: Fowl et al. 2022 ("Robbing the Fed", arXiv 2110.13057); the sparse form follows its second variant. For local
steps and many clients see LOKI (Zhao et al. 2023).

Example::

    planted = imprint_model(public_images, bins=256, classes=10, sparse=False, rand=os.urandom)  # send `planted.model`
    found = imprint(view, planted)  # `view`: the sum that comes back, see `secagg.attacks.views`
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dp import FloatMatrix, FloatVector, RandomBytes

from .chance import normal
from .views import Observed, flat

try:
    import torch
    from torch import nn
except ImportError as missing:
    raise ImportError("the red team needs PyTorch: pip install 'secagg[torch]'") from missing

Images = NDArray[np.float64]

# Rows weaker than this, in standard deviations of the noise's norm on a row, or relative to the strongest row: empty.
_NOISE_MARGIN = 1.0
_ROUNDING_MARGIN = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imprint:
    """A planted model, and all that the adversary needs to read its gradients.

    Attributes:
        model: what clients get: inputs flattened, the planted layer, a head. Any model can follow the planted layer.
        edges: float64[bins + 1], brightness at which the bins begin and end, increasing.
        public: float64[m, ...], the public pictures.
        sparse: rows fire inside their bin only.
    """

    model: nn.Module
    edges: FloatVector
    public: Images
    sparse: bool

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one picture."""
        return self.public.shape[1:]


def imprint_model(public: Images, *, bins: int, classes: int, sparse: bool, rand: RandomBytes) -> Imprint:
    """Plants the layer.

    Args:
        public: float64[m, ...], public pictures of about the same brightness as the private ones.
        bins: k, rows of the planted layer.
        classes: outputs of the head.
        sparse: rows fire inside their bin only.
        rand: bytes for the head.

    Raises:
        ValueError: fewer than two bins or public pictures.
    """
    if bins < 2 or len(public) < 2:
        raise ValueError(f"bins = {bins} and {len(public)} public pictures must be at least 2")
    shape = public.shape[1:]
    brightness = public.reshape(len(public), -1).mean(axis=1)
    # A normal law smooths the quantiles, so that a few public pictures are enough for many bins.
    law = NormalDist(float(brightness.mean()), float(brightness.std()) + 1e-9)
    levels = np.linspace(0, 1, bins + 1).clip(0.25 / bins, 1 - 0.25 / bins)
    edges = np.array([law.inv_cdf(level) for level in levels])
    pixels = int(np.prod(shape))
    low, width = torch.from_numpy(edges[:-1]), torch.from_numpy(np.diff(edges))
    rows = torch.full((bins, pixels), 1 / pixels, dtype=torch.float64)
    planted, head = nn.Linear(pixels, bins), nn.Linear(bins, classes)
    with torch.no_grad():
        if sparse:
            planted.weight.copy_(rows / width[:, None])
            planted.bias.copy_(-low / width)
        else:
            planted.weight.copy_(rows)
            planted.bias.copy_(-low)
        # Equal columns: each bin gets the same gradient from above, whatever the picture's class.
        column = torch.from_numpy(normal((classes, 1), rand=rand))
        head.weight.copy_((column / column.norm() if sparse else column).expand(classes, bins))
        head.bias.zero_()
    fires = nn.Hardtanh(0.0, 1.0) if sparse else nn.ReLU()
    model = nn.Sequential(nn.Flatten(), planted, fires, head)
    return Imprint(model=model, edges=edges, public=public, sparse=sparse)


def imprint(
    view: Observed, knowledge: Imprint, *, rand: RandomBytes | None = None, noise_stddev: float = 0.0
) -> Images:
    """Reads the pictures out of a sum of gradients.

    Args:
        view: the gradient of the planted model summed over any number of pictures, or any multiple of it.
        knowledge: the planted model.
        rand: not used; every attack takes it.
        noise_stddev: of the noise per coordinate, which the configuration makes public (`view.noise_stddev`); rows that
            cannot be told from noise are left out.

    Returns:
        float64[m, *input_shape] in [0, 1], brightest bins last; m depends on the view.

    Raises:
        ValueError: the view does not fit the model.
    """
    bins, pixels = len(knowledge.edges) - 1, int(np.prod(knowledge.input_shape))
    vector = flat(view)
    if len(vector) < bins * (pixels + 1):
        raise ValueError(f"the view has {len(vector)} coordinates, the planted layer alone {bins * (pixels + 1)}")
    weights = vector[: bins * pixels].reshape(bins, pixels)
    biases = vector[bins * pixels : bins * (pixels + 1)]
    if not knowledge.sparse:
        # Row i holds the pictures above its edge; what row i + 1 does not hold lies in bin i.
        weights = np.vstack([weights[:-1] - weights[1:], weights[-1:]])
        biases = np.append(biases[:-1] - biases[1:], biases[-1])
    size = np.linalg.norm(weights, axis=1)
    noise = noise_stddev * np.sqrt(pixels * (1 if knowledge.sparse else 2))
    used = size > max(_ROUNDING_MARGIN * size.max(initial=0.0), (1 + _NOISE_MARGIN / np.sqrt(pixels)) * noise)
    weights, biases = weights[used], biases[used]
    middle = ((knowledge.edges[:-1] + knowledge.edges[1:]) / 2)[used]
    if knowledge.sparse and noise_stddev:
        scale = middle / weights.mean(axis=1)
    else:
        with np.errstate(divide="ignore"):
            scale = 1 / biases
    images = np.nan_to_num(weights * scale[:, None], nan=0.0, posinf=1.0, neginf=0.0)
    if noise_stddev:
        deviation = np.abs(np.nan_to_num(scale, posinf=1e6, neginf=1e6)) * noise / np.sqrt(pixels)
        images = wiener(images, deviation, knowledge.public.reshape(-1, pixels))
    pictures: Images = images.clip(0, 1).reshape(-1, *knowledge.input_shape)
    return pictures


def wiener(noisy: FloatMatrix, stddev: FloatVector, public: FloatMatrix) -> FloatMatrix:
    """The best linear guess of pictures under white noise, from the mean and covariance of public ones.

    Args:
        noisy: float64[m, d].
        stddev: float64[m], of each picture's noise per pixel.
        public: float64[k, d].
    """
    mean = public.mean(axis=0)
    _, singular, basis = np.linalg.svd(public - mean, full_matrices=False)
    variance = singular**2 / len(public)
    coefficients = (noisy - mean) @ basis.T
    coefficients *= variance / (variance + stddev[:, None] ** 2 + 1e-30)
    guess: FloatMatrix = mean + coefficients @ basis
    return guess


def expected_alone(images: int, bins: int) -> float:
    """n(1 - 1/k)^(n - 1): pictures that are alone in their bin, if all bins are equally likely."""
    return images * (1 - 1 / bins) ** (images - 1)

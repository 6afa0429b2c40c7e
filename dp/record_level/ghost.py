"""Ghost clipping and one rounding (`rounding="sum"`): no record's gradient is ever in memory.

Rules:

- Two backward passes, as in Opacus' `grad_sample_mode="ghost"`: the first gives the norm of every record's gradient,
  the second the sum y of all gradients, each times its clipping factor. Norms are measured again in the pass that sums:
  a record whose clipped gradient came out longer than the clip counts as absent.
- The sum is rounded once: q = floor(s·y + u), with coins u in [0, 1)^d that depend on no data. Let a record's clipped
  gradient g leave. For the same coins every coordinate of q moves by less than one step more or less than s·g, so q
  moves by at most s·||g|| + √d in L2. The coins have the same law with and without the record, and Rényi divergence is
  jointly quasi-convex, so this bound, which holds for all coins, bounds the release: no failure probability is added.
- Records are clipped at the norm for which that bound is `int_bound` (`sum_clip`). The event then states `int_bound`
  and "sum".
- This bound rests on floats, `exact` does not. By the worst case of a sum of K terms in precision u, removing a record
  moves a computed sum by 2·K·u·rows·c beyond what it moves the true one; `sum_clip` leaves c/128 for it, and
  `SecureDPOptimizer` refuses batches in which K·rows could pass that. K counts rows and places: sequence steps, pixels.
  Not proven is that a record's own terms at many places do not cancel: then its part of the float error is larger than
  its gradient, and a model could be made for that. `module.double()` leaves 29 more bits for it.
- A record whose gradient is not finite counts as absent too: the batch is run again without it, in the same rows.

Sources: Lee, Kifer, "Scaling up differentially private deep learning with fast per-example gradient clipping", PETS
2021; Bu, Mao, Xu, "Scalable and efficient training of large convolutional neural networks with differential privacy",
NeurIPS 2022; van Erven, Harremoës, "Rényi divergence and Kullback-Leibler divergence", 2014 (quasi-convexity); Higham,
"Accuracy and stability of numerical algorithms", 2002, section 4.2 (sums).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.utils.module_utils import trainable_parameters
from torch import Tensor, nn

from ..encoding import IntegerEncoder, least_int_bound
from ..errors import CapacityError, UnsafeUpdateError
from .batches import RowLayout, map_tensors

_SUM_MARGIN = 2.0**-7  # of the clip norm, for the float sum over records
_NORM_MARGIN = 2.0**-10  # for the norm of the second pass against that of the first
_GRID_MARGIN = 2.0**-10  # of a step: s·y + u is itself a float64
_UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
_LARGEST_FACTOR = 2.0**100  # a norm further beyond the clip is as good as infinite: its factor would be subnormal


class ClippedSum(Protocol):
    """Where the clipped sum of a physical batch goes."""

    record_clip: float

    def take_sum(self, *, terms: int, rejected: int) -> None:
        """Take the gradients that the second pass left in the parameters."""


def sum_clip(encoder: IntegerEncoder, length: int) -> float:
    """Norm to clip records to, so that rounding their sum moves no further than `int_bound` when one leaves.

    Raises:
        CapacityError: `int_bound` is below 8·√length: rounding would take most of it.
    """
    if encoder.int_bound < (needed := least_int_bound(length)):
        raise CapacityError(
            f'int_bound {encoder.int_bound} is too small for rounding "sum": at least {needed} is needed'
        )
    steps = encoder.int_bound - math.sqrt(length) * (1 + _GRID_MARGIN)
    return encoder.clip_norm / encoder.int_bound * steps / ((1 + _SUM_MARGIN) * (1 + _NORM_MARGIN))


def terms_covered(parameters: Sequence[nn.Parameter]) -> int:
    """Largest K·rows, summed over the physical batches of a logical one, that the margin covers.

    Raises:
        ValueError: A parameter is neither float32 nor float64.
    """
    for parameter in parameters:
        if parameter.dtype not in _UNIT_ROUNDOFF:
            raise ValueError(f'rounding "sum" needs float32 or float64 parameters, got {parameter.dtype}')
    return math.floor(_SUM_MARGIN / 2 / max(_UNIT_ROUNDOFF[parameter.dtype] for parameter in parameters))


class GhostRows(RowLayout, GradSampleModuleFastGradientClipping):  # type: ignore[misc]  # Opacus is untyped
    """Norms of per-record gradients and their clipped sum, from training batches of a fixed number of rows.

    As `FixedRows`, but gradients come from the loss that `GhostLoss` returns, and weights may be used by one layer,
    once in a pass, and nowhere else.

    Args:
        module: As for `FixedRows`.
        rows: Rows per training batch, >= 1.

    Raises:
        ValueError: `rows` is outside its bound.
        NotImplementedError: A trained layer has buffers, which Opacus does not support.
    """

    def __init__(self, module: nn.Module, *, rows: int) -> None:
        super().__init__(module, loss_reduction="sum")
        self.lay_out(rows)
        self._terms: Counter[nn.Module] = Counter()
        self._call: tuple[tuple[object, ...], Mapping[str, object], Tensor, int] | None = None
        self._outputs: list[Tensor] = []
        self._kept: dict[nn.Module, dict[str, Any]] = {}
        self._uses: list[int] = []

    def forward(self, *args: object, **kwargs: object) -> object:
        """Call the module on the records.

        Raises:
            UnsafeUpdateError: An input or output tensor does not have one row per record, a layer is used twice,
                a weight is used outside its layer, or PyTorch is set to compute in less than float32.
        """
        if not (self.training and torch.is_grad_enabled()):
            return self._module(*args, **kwargs)
        self._require_full_precision()
        return super().forward(*args, **kwargs)

    def run_placed(
        self, args: tuple[object, ...], kwargs: Mapping[str, object], *, places: Tensor, total: int
    ) -> object:
        """As `RowLayout.run_placed`, keeping what the second pass needs."""
        self._forget()
        try:
            outputs = super().run_placed(args, kwargs, places=places, total=total)
        except NotImplementedError as error:  # Opacus says this of a layer that is called again
            raise UnsafeUpdateError(
                'a layer is used twice in one pass: ghost clipping cannot norm it, take rounding="exact" with '
                'grad_sample_mode="hooks"'
            ) from error

        def keep(output: Tensor) -> Tensor:
            if output.requires_grad:
                output.retain_grad()
                self._outputs.append(output)
            return output

        outputs = map_tensors(keep, outputs)
        self._call = (args, kwargs, places, total)
        # The first pass uses these up, and the second one measures norms again.
        self._kept = {
            layer: {**layer.__dict__, "activations": list(layer.activations)}
            for layer in self._module.modules()
            if hasattr(layer, "activations")
        }
        self._uses = [parameter._forward_counter for _, parameter in trainable_parameters(self._module)]
        self._require_known_uses()
        return outputs

    def _require_known_uses(self) -> None:
        """The second pass sums what autograd finds, norms what layers say: both must be of the same uses."""
        found = _edges(self._outputs)
        for (name, parameter), uses in zip(trainable_parameters(self._module), self._uses, strict=True):
            if found[parameter] != uses:
                raise UnsafeUpdateError(
                    f"parameter {name} enters the outputs {found[parameter]} times, its layer was called {uses} times: "
                    "ghost clipping norms what passes through layers, once in a call; use it there alone, or take "
                    'rounding="exact" with grad_sample_mode="hooks"'
                )

    def capture_activations_hook(self, module: nn.Module, forward_input: list[Tensor], forward_output: Tensor) -> None:
        """Opacus' hook, which also counts the terms of every layer's float sums."""
        super().capture_activations_hook(module, forward_input, forward_output)
        if self.hooks_enabled and self.training and torch.is_grad_enabled():
            self._terms[module] += forward_output.numel() // _features(module)

    def hand_over(self, destination: ClippedSum) -> None:
        """After the first backward pass: clip, run the second one, and let `destination` take the sum.

        Raises:
            UnsafeUpdateError: There was no forward pass, or a parameter or an output took no part in the loss.
        """
        rejected = 0
        clip = destination.record_clip
        while True:
            if self._call is None:
                raise UnsafeUpdateError("there was no forward pass since the last backward one")
            args, kwargs, places, total = self._call
            gradients = [_gradient(output) for output in self._outputs]
            norms = self._norms()[places]
            kept = norms <= clip * _LARGEST_FACTOR  # False for nan
            if kept.all():
                kept = self._second_pass(gradients, (clip / norms).clamp(max=1.0))[places] <= clip * (1 + _NORM_MARGIN)
            if kept.all():
                break
            # Without the others, and both passes anew: a random layer would change what their norms were taken of.
            good = torch.nonzero(kept).flatten()
            rejected += len(kept) - len(good)

            def choose(value: object, good: Tensor = good) -> object:
                return value.index_select(0, good.to(value.device)) if isinstance(value, Tensor) else value

            self.run_placed(
                tuple(choose(value) for value in args),
                {name: choose(value) for name, value in kwargs.items()},
                places=places[good],
                total=total,
            )
            chosen = [gradient.index_select(0, good.to(gradient.device)) for gradient in gradients]
            torch.autograd.backward(self._outputs, chosen, retain_graph=True)
        terms = max(self._terms.values()) * total
        self._forget()
        destination.take_sum(terms=terms, rejected=rejected)

    def _second_pass(self, gradients: list[Tensor], factors: Tensor) -> Tensor:
        """Sum up gradients times factors; returns the norms of what was summed, float64[total]."""
        for layer, kept in self._kept.items():
            layer.__dict__.update(activations=list(kept["activations"]))
            if "max_batch_len" in kept:
                layer.__dict__["max_batch_len"] = kept["max_batch_len"]
        for (_, parameter), uses in zip(trainable_parameters(self._module), self._uses, strict=True):
            parameter.grad = None
            parameter.__dict__.pop("_norm_sample", None)
            parameter._forward_counter = uses
        torch.autograd.backward(
            self._outputs,
            [gradient * factors.to(gradient).view(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients],
        )
        return self._norms()

    def _norms(self) -> Tensor:
        """float64[total]: the norm of the gradient of every row."""
        squared: Tensor | float = 0.0
        for name, parameter in trainable_parameters(self._module):
            norm = getattr(parameter, "_norm_sample", None)
            if norm is None:
                raise UnsafeUpdateError(
                    f"parameter {name} took no part in the loss: freeze it with requires_grad_(False)"
                )
            squared = squared + norm.double().cpu().square()
        return torch.as_tensor(squared).sqrt()

    def _forget(self) -> None:
        """Drop everything of an earlier pass: it may never have seen its backward one."""
        self._outputs, self._call, self._kept = [], None, {}
        self._terms.clear()
        for layer in self._module.modules():
            for name in ("activations", "max_batch_len"):
                layer.__dict__.pop(name, None)
        for _, parameter in trainable_parameters(self._module):
            for name in ("_norm_sample", "_current_grad_sample"):
                parameter.__dict__.pop(name, None)
            parameter._forward_counter = 0

    def _require_full_precision(self) -> None:
        """The margin is for float32 sums: reduced precision would pass it."""
        device = next(self._module.parameters()).device.type
        reduced = {
            "autocast": torch.is_autocast_enabled(device),
            "float32_matmul_precision": torch.get_float32_matmul_precision() != "highest",
            "cudnn.allow_tf32": device == "cuda" and torch.backends.cudnn.allow_tf32,
        }
        for name, on in reduced.items():
            if on:
                raise UnsafeUpdateError(f'{name} reduces the precision of sums: rounding "sum" needs full float32')


def _linear_norms(layer: nn.Linear, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Norms of a linear layer's gradients, over any number of places in a record.

    In float64: the squared norm over several places is a difference of large numbers, and what float32 loses in it, a
    record would gain.
    """
    error = backprops.double().flatten(1, -2) if backprops.dim() > 2 else backprops.double()[:, None]
    value = activations[0].double().reshape(len(error), error.shape[1], -1)
    trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
    norms: dict[Tensor, Tensor] = {}
    if layer.weight in trained:
        if error.shape[1] == 1:
            squared = error.square().sum((1, 2)) * value.square().sum((1, 2))
        else:
            squared = ((error @ error.mT) * (value @ value.mT)).sum((1, 2)).clamp(min=0.0)
        norms[layer.weight] = squared.sqrt()
    if layer.bias in trained:
        norms[layer.bias] = error.sum(1).square().sum(1).sqrt()
    return norms


def _embedding_norms(layer: nn.Embedding, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Norms of an embedding's gradients: what places with the same index add up to."""
    index = activations[0].reshape(len(activations[0]), -1)
    error = backprops.double().reshape(*index.shape, -1)
    counted = torch.ones_like(index, dtype=torch.bool) if layer.padding_idx is None else index != layer.padding_idx
    same = (index[:, :, None] == index[:, None, :]) & counted[:, :, None] & counted[:, None, :]
    squared = ((error @ error.mT) * same).sum((1, 2)).clamp(min=0.0)
    return {layer.weight: squared.sqrt()} if layer.weight.requires_grad else {}


GhostRows.NORM_SAMPLERS = {nn.Linear: _linear_norms, nn.Embedding: _embedding_norms}


def _features(layer: nn.Module) -> int:
    """Entries of a layer's output that go into different weights; the others are added up."""
    match layer:
        case nn.Linear() | nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return int(layer.weight.shape[0])
        case nn.Embedding():
            return int(layer.weight.shape[1])
        case nn.GroupNorm() | nn.LayerNorm():
            return int(layer.weight.numel())
        case _:
            return 1


def _edges(outputs: Sequence[Tensor]) -> Counter[Tensor]:
    """How often each leaf enters the graph of the outputs."""
    found: Counter[Tensor] = Counter()
    pending: set[Any] = {output.grad_fn for output in outputs}
    seen = set(pending)
    while pending:
        for node, _ in pending.pop().next_functions:
            if hasattr(node, "variable"):
                found[node.variable] += 1
            elif node is not None and node not in seen:
                seen.add(node)
                pending.add(node)
    return found


def _gradient(output: Tensor) -> Tensor:
    """What the loss passed back to one output of the module."""
    if output.grad is None:
        raise UnsafeUpdateError("an output of the module took no part in the loss: do not return it, or detach() it")
    return output.grad


class GhostLoss:
    """A criterion whose result runs both backward passes.

    Args:
        module: The wrapped module whose outputs it is called on.
        optimizer: Takes the clipped sum.
        criterion: A loss that adds up over the records of a batch.
    """

    def __init__(self, module: GhostRows, optimizer: ClippedSum, criterion: Callable[..., Tensor]) -> None:
        self.module = module
        self.optimizer = optimizer
        self.criterion = criterion

    def __call__(self, *args: object, **kwargs: object) -> "PendingLoss":
        """The loss of the module's latest outputs."""
        return PendingLoss(self.criterion(*args, **kwargs), self.module, self.optimizer)


class PendingLoss:
    """The loss of one physical batch; `backward()` once, then `step()`."""

    def __init__(self, value: Tensor, module: GhostRows, optimizer: ClippedSum) -> None:
        self._value = value
        self._module = module
        self._optimizer = optimizer

    def backward(self) -> None:
        """Both passes: the clipped sum is in the optimizer afterwards."""
        torch.autograd.backward(self._value, retain_graph=True)
        self._module.hand_over(self._optimizer)

    def detach(self) -> Tensor:
        """Its value, without gradient. It is private: publishing it is a release of its own."""
        return self._value.detach()

    def item(self) -> float:
        """Its value as a number; as private as `detach()`."""
        return float(self._value.detach())

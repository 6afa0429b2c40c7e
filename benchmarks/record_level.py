"""One step of DP-SGD through Opacus: what `exact` and `sum` rounding cost beside Opacus' own steps.

- `hooks` and `ghost` are Opacus' optimizers without noise: the floors. `exact` and `sum` are ours, on the same rows.
- `step_s` is CPU time of forward, backward, clipping and the step in one thread, without noise, the least of several.
  `noise_s` is that of one share, calibrated for 20 clients, of which 12 survive and are honest, and epsilon 4 after
  200 rounds at rate 0.1.
- `peak_bytes` is what steps add to the process' resident memory, each variant in a process of its own.
- Data is random: neither time nor memory depends on it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .harness import add_output_options, publish, say

MODELS = ("cnn", "mlp", "gru")
VARIANTS = ("hooks", "exact", "ghost", "sum")
WORDS, PLACES = 5000, 20  # of the next-word model
CLIP = 1.0


def add_command(commands: Any) -> None:
    """Registers `record_level`."""
    parser = commands.add_parser("record_level", help="one DP-SGD step through Opacus, beside Opacus' own")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated, of " + ", ".join(MODELS))
    parser.add_argument("--batch", type=int, default=64, help="records of a step; the next-word model takes half")
    parser.add_argument("--repeat", type=int, default=7)
    add_output_options(parser)
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    names = options.models.split(",")
    if not set(names) <= set(MODELS) or options.batch < 2 or options.repeat < 1:
        raise ValueError(f"models are {MODELS}, batch at least 2, repeat at least 1")
    models = []
    for name in names:
        batch = options.batch // 2 if name == "gru" else options.batch
        steps: dict[str, Any] = {}
        for variant in VARIANTS:
            say(f"{name}: {variant}")
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                steps[variant] = alone.apply(measure, (name, variant, batch, options.repeat))
        models.append({
            "model": name,
            "parameters": min([facts.pop("parameters") for facts in steps.values()]),
            "batch": batch,
            "exact_over_hooks": steps["exact"]["step_s"] / steps["hooks"]["step_s"],
            "sum_over_ghost": steps["sum"]["step_s"] / steps["ghost"]["step_s"],
            "steps": steps,
        })  # fmt: skip
    versions = {name: version(name).split("+")[0] for name in ("torch", "opacus")}
    publish("record_level", {"threads": 1, "versions": versions, "models": models}, options)
    return 0


def measure(name: str, variant: str, batch: int, repeat: int) -> dict[str, Any]:
    """Times and memory of one variant of a step, in a process of its own."""
    import torch

    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # inputs need no gradient
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, inputs, targets = _model(name, batch)
    # Rows times places of the convolution are more than a float32 sum is covered for.
    dtype = torch.float64 if (name, variant) in {("cnn", "sum"), ("cnn", "ghost")} else torch.float32
    module.to(dtype)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    parameters = sum(parameter.numel() for parameter in module.parameters())
    step, noise = _ours(module, variant, batch) if variant in ("exact", "sum") else _opacus(module, variant)
    before = _reset_peak()
    step(inputs, targets)
    times = [_seconds(lambda: step(inputs, targets)) for _ in range(repeat)]
    peak = _peak() - before
    return {
        "parameters": parameters,
        "dtype": str(dtype).removeprefix("torch."),
        "step_s": min(times),
        "noise_s": _least(noise, repeat) if noise else 0.0,
        "peak_bytes": peak,
    }


def _model(name: str, batch: int) -> tuple[Any, Any, Any]:
    import torch
    from opacus.layers import DPGRU
    from torch import nn

    class NextWord(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(WORDS, 64)
            self.read = DPGRU(64, 96, batch_first=True)
            self.out = nn.Linear(96, WORDS)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.transpose(self.out(self.read(self.embed(tokens))[0]), 1, 2)

    pictures, digits = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    match name:
        case "cnn":
            module: nn.Module = nn.Sequential(
                nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1),
                nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1),
                nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
            )  # fmt: skip
            return module, pictures, digits
        case "mlp":
            layers = (
                nn.Flatten(),
                nn.Linear(784, 1024),
                nn.ReLU(),
                nn.Linear(1024, 384),
                nn.ReLU(),
                nn.Linear(384, 10),
            )
            return nn.Sequential(*layers), pictures, digits
        case _:
            words = torch.randint(0, WORDS, (2, batch, PLACES))
            return NextWord(), words[0], words[1]


Step = Callable[[Any, Any], None]


def _ours(module: Any, variant: str, batch: int) -> tuple[Step, Callable[[], object]]:
    """A step of `SecureDPOptimizer`, with noise that was drawn before; and the drawing of a share."""
    import torch

    from dp import DistributedSkellam, RecordLevel, calibrate, secure_random
    from dp.record_level import FixedRows, GhostLoss, GhostRows, SecureDPOptimizer, SkellamAccountant

    class NoiseApart(DistributedSkellam):
        """Its noise is timed on its own."""

        def noise_share(self, *, rand: Any, seeds: Any = ()) -> Any:
            return zeros

    unit = RecordLevel(
        clip_norm=CLIP, epsilon=4.0, delta=1e-5, rounds=200, sampling_rate=0.1, records=200 * batch,
        rounding="exact" if variant == "exact" else "sum",
    )  # fmt: skip
    dimension = sum(parameter.numel() for parameter in module.parameters())
    real = calibrate(unit, dimension=dimension, clients=20, min_survivors=15, max_colluders=3)
    shape = {entry.name: getattr(real, entry.name) for entry in fields(real)}
    zeros = DistributedSkellam(**shape | {"share_variance": Fraction(1, 2**22)}).noise_share(rand=secure_random())
    optimizer = SecureDPOptimizer(
        torch.optim.SGD(module.parameters(), lr=0.01), unit=unit, mechanism=NoiseApart(**shape),
        accountant=SkellamAccountant(), aggregate=lambda share: (share.take(), 15),
    )  # fmt: skip
    loss: Any = torch.nn.CrossEntropyLoss(reduction="sum")
    wrapped: Any
    if variant == "exact":
        wrapped = FixedRows(module, rows=batch)
    else:
        wrapped = GhostRows(module, rows=batch)
        loss = GhostLoss(wrapped, optimizer, loss)

    def step(inputs: Any, targets: Any) -> None:
        optimizer.zero_grad()
        loss(wrapped(inputs), targets).backward()
        optimizer.step()

    return step, lambda: real.noise_share(rand=secure_random())


def _opacus(module: Any, variant: str) -> tuple[Step, None]:
    """A step of Opacus' own optimizer, without noise."""
    import torch
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    sgd = torch.optim.SGD(module.parameters(), lr=0.01)
    common = {"noise_multiplier": 0.0, "max_grad_norm": CLIP, "expected_batch_size": 1, "loss_reduction": "sum"}
    criterion = torch.nn.CrossEntropyLoss(reduction="sum")
    if variant == "hooks":
        hooked = GradSampleModule(module, loss_reduction="sum")
        per_record = DPOptimizer(sgd, **common)

        def hooks_step(inputs: Any, targets: Any) -> None:
            per_record.zero_grad()
            criterion(hooked(inputs), targets).backward()
            per_record.step()

        return hooks_step, None
    ghost = GradSampleModuleFastGradientClipping(module, loss_reduction="sum", max_grad_norm=CLIP)
    optimizer = DPOptimizerFastGradientClipping(sgd, **common)
    loss = DPLossFastGradientClipping(ghost, optimizer, criterion, "sum")

    def ghost_step(inputs: Any, targets: Any) -> None:
        optimizer.zero_grad()
        outputs = ghost(inputs)
        if outputs.dim() == 3:
            words = outputs.transpose(1, 2)
            loss(words.reshape(-1, WORDS), targets.reshape(-1), shape=words.shape).backward()
        else:
            loss(outputs, targets).backward()
        optimizer.step()

    return ghost_step, None


def _seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def _least(call: Callable[[], object], repeat: int) -> float:
    call()
    return min(_seconds(call) for _ in range(repeat))


def _reset_peak() -> int:
    """Forgets the peak of the resident memory so far; returns what is resident."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Peak of the resident memory, bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0])

"""The steps that are timed are real ones, and every reported key stands in the schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import secagg
from benchmarks import harness
from benchmarks.__main__ import main
from benchmarks.record_level import VARIANTS, _model, _opacus, _ours, measure

SCHEMA = json.loads((Path(secagg.__file__).parent / "schema.json").read_text())


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_steps(variant: str) -> None:
    torch.manual_seed(0)
    module, inputs, targets = _model("cnn", 4)
    module.double()  # the convolution has more places than float32 sums are covered for
    before = [parameter.detach().clone() for parameter in module.parameters()]
    step, noise = _ours(module, variant, 4) if variant in ("exact", "sum") else _opacus(module, variant)
    step(inputs.double(), targets)
    assert all(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    assert noise is None or noise().shape == (26_010,)


def test_reported_keys_and_committed_ratios() -> None:
    threads = torch.get_num_threads()
    facts = measure("cnn", "exact", 4, 1)
    torch.set_num_threads(threads)
    assert set(facts) == {"parameters", "dtype", "step_s", "noise_s", "peak_bytes"}
    saved = json.loads((harness.RESULTS / "record-level.json").read_text())
    assert set(saved) - {"command"} == set(SCHEMA["benchmarks record_level"])
    assert [model["model"] for model in saved["models"]] == ["cnn", "mlp", "gru"]
    for model in saved["models"]:
        steps = model["steps"]
        assert model["exact_over_hooks"] == steps["exact"]["step_s"] / steps["hooks"]["step_s"] <= 3
        assert model["sum_over_ghost"] == steps["sum"]["step_s"] / steps["ghost"]["step_s"] <= 3
    mlp = saved["models"][1]["steps"]
    assert mlp["sum"]["step_s"] + mlp["sum"]["noise_s"] - mlp["ghost"]["step_s"] <= 0.060


@pytest.mark.parametrize("words", [["--models", "cnn,lstm"], ["--batch", "1"], ["--repeat", "0"]])
def test_wrong_arguments_are_refused(words: list[str]) -> None:
    assert main(["record_level", *words]) == 2

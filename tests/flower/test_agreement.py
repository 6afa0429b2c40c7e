"""Flat keys in, a configuration out: what is misspelt, missing or contradictory is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from protocols import PolicyRefusal
from secagg import AggregationConfig, ClientLevel, PrivateWeights
from secagg.adapters.flower import Agreement, write_agreement
from secagg.adapters.flower.agreement import layout_text, read_layout
from secagg.layout import Layout

LIKE = {"w": np.zeros((3, 4), np.float32), "b": np.zeros((), np.float64)}
SETTINGS = {
    "secagg-clients": 10, "secagg-max-dropouts": 2, "secagg-max-colluders": 1, "secagg-clip-norm": 1.0,
    "secagg-epsilon": 4.0, "secagg-delta": 1e-6, "secagg-rounds": 20,
}  # fmt: skip


def test_the_configuration_is_that_of_the_preset() -> None:
    settings = {
        **SETTINGS, "secagg-largest-weight": 500, "secagg-metrics": "loss:0:10 accuracy:0:1",
        "secagg-application": "scans", "secagg-modulus-bits": 32, "learning-rate": 0.1, "num-server-rounds": 20,
    }  # fmt: skip
    config = AggregationConfig.cross_silo(
        like=LIKE,
        clients=10,
        max_dropouts=2,
        max_colluders=1,
        privacy=ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-6, rounds=20),
        application="scans",
        weights=PrivateWeights(largest=500),
        metrics={"loss": (0, 10), "accuracy": (0, 1)},
    )
    assert Agreement.of(settings).config(Layout.of(LIKE)).digest() == config.digest()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"secagg-epsilom": 4.0}, r"unknown keys \['secagg-epsilom'\]"),
        ({"secagg-privacy": "record"}, "'record'"),
        ({"secagg-privacy": "none"}, r"takes none of \['secagg-delta', 'secagg-epsilon', 'secagg-rounds'\]"),
        ({"secagg-adaptive-clipping": 1}, "must be true or false, got 1"),
        ({"secagg-protocol": "plain"}, "secagg-protocol must be one of"),
        ({"secagg-clients": 10.0}, "secagg-clients must be a whole number, got 10.0"),
        ({"secagg-clients": True}, "secagg-clients must be a whole number, got True"),
        ({"secagg-epsilon": "4"}, "secagg-epsilon must be a number, got '4'"),
        ({"secagg-clip-norm": False}, "secagg-clip-norm must be a number"),
        ({"secagg-application": 3}, "secagg-application must be a text"),
        ({"secagg-metrics": "loss"}, 'must look like "loss:0:10 accuracy:0:1"'),
        ({"secagg-metrics": "loss:1:0"}, "least < largest"),
        ({"secagg-public-weights": "1=3"}, 'must look like "1:120 2:80"'),
        ({"secagg-public-weights": "1:2", "secagg-largest-weight": 3.0}, "public or private"),
        ({"secagg-epsilon": -1.0}, "epsilon"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Agreement.of({**SETTINGS, **change})


@pytest.mark.parametrize("key", SETTINGS)
def test_a_missing_setting_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} must be a (whole )?number, got None"):
        Agreement.of({name: value for name, value in SETTINGS.items() if name != key})


def test_a_file_says_the_same(tmp_path: Path) -> None:
    settings = {**SETTINGS, "secagg-metrics": "loss:0:10", "secagg-roster": "/elsewhere", "lr": 0.1}
    write_agreement(tmp_path / "agreement.toml", settings)
    assert Agreement.read(tmp_path / "agreement.toml") == Agreement.of(settings)
    assert "secagg-roster" not in (tmp_path / "agreement.toml").read_text()
    with pytest.raises(FileExistsError):
        write_agreement(tmp_path / "agreement.toml", settings)


@pytest.mark.parametrize("text", ["", "secagg-clients = ", "secagg-clients = 3", "\x00"])
def test_a_file_that_is_not_usable_agrees_to_nothing(text: str, tmp_path: Path) -> None:
    path = tmp_path / "agreement.toml"
    with pytest.raises(PolicyRefusal, match="cannot be used"):
        Agreement.read(path)
    path.write_text(text)
    with pytest.raises(PolicyRefusal, match="cannot be used"):
        Agreement.read(path)


def test_a_text_that_toml_would_read_otherwise_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without quotes"):
        write_agreement(tmp_path / "agreement.toml", {**SETTINGS, "secagg-application": 'a"\nsecagg-clients = 2'})


@pytest.mark.parametrize("key", SETTINGS)
def test_every_difference_is_refused_by_name(key: str) -> None:
    own, other = Agreement.of(SETTINGS), Agreement.of({**SETTINGS, key: SETTINGS[key] / 2 if SETTINGS[key] < 1 else 3})
    own.check(own.to_text())
    with pytest.raises(PolicyRefusal, match=f"did not agree to: {key} = .*agreed: ") as info:
        own.check(other.to_text())
    assert str(info.value).count("agreed:") == 1


def test_weights_and_metrics_are_part_of_the_terms() -> None:
    own = Agreement.of(SETTINGS)
    with pytest.raises(PolicyRefusal, match="secagg-weights"):
        own.check(Agreement.of({**SETTINGS, "secagg-largest-weight": 3.0}).to_text())
    with pytest.raises(PolicyRefusal, match="secagg-metrics"):
        own.check(Agreement.of({**SETTINGS, "secagg-metrics": "loss:0:1"}).to_text())


@pytest.mark.parametrize("text", ["", "[]", "1", '{"secagg-clients": 10}', "{}"])
def test_a_proposal_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PolicyRefusal):
        Agreement.of(SETTINGS).check(text)


def test_layouts_travel() -> None:
    layout = Layout.of(LIKE)
    assert read_layout(layout_text(layout)) == layout


def test_a_claimed_size_is_not_allocated() -> None:
    text = json.dumps([{"name": "w", "shape": [2**40], "dtype": "float64"}])
    assert read_layout(text).length == 2**40


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", "[1]", '[{"name": "w"}]', '[{"name": "w", "shape": 3, "dtype": "float32"}]',
        '[{"name": "w", "shape": [3], "dtype": "int64"}]', '[{"name": "w", "shape": [-1], "dtype": "float32"}]',
        '[{"name": "w", "shape": [3], "dtype": "object"}]', '[{"name": "w", "shape": ["a"], "dtype": "float32"}]',
        '[{"name": "w", "shape": [0], "dtype": "float32"}]', '[{"name": "w", "shape": [3], "dtype": "nonsense"}]',
    ],
)  # fmt: skip
def test_what_is_no_layout_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        read_layout(text)

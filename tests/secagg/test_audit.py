"""The audit passes the code that is shipped and fails every bug that it says it finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import secagg
from dp import from_ring, secure_random
from secagg import AdaptiveClipping, AggregationConfig, ClientLevel, NoPrivacy, RecordLevel
from secagg.audit import audit_privacy, canary, honest_path, nothing, with_length
from secagg.audit_defects import DEFECTS, Defect, defects_of

CLIENT = ClientLevel(clip_norm=1.0, epsilon=4.0, delta=1e-5, rounds=1)
RECORD = RecordLevel(clip_norm=1.0, epsilon=4.0, delta=1e-5, rounds=10, sampling_rate=0.25, records=800)


def silo(privacy: Any, **other: Any) -> AggregationConfig:
    arguments = {"clients": 7, "max_dropouts": 1, "max_colluders": 1, **other}
    return AggregationConfig.cross_silo(like={"w": np.zeros(300)}, privacy=privacy, **arguments)


@pytest.mark.parametrize(("privacy", "law"), [(CLIENT, "skellam"), (RECORD, "skellam"), (CLIENT, "discrete_gaussian")])
def test_the_shipped_path_passes(privacy: Any, law: str) -> None:
    seen: list[tuple[int, int]] = []
    report = audit_privacy(silo(privacy, noise_law=law), trials=1500, progress=lambda done, of: seen.append((done, of)))
    assert report.passed, report.to_dict()
    assert [check.name for check in report.checks] == ["epsilon", "variance", "sum", "streams", "sensitivity"]
    assert seen[-1] == (1500, 1500)
    # The test has teeth: the canary is found, and its integers come close to the bound.
    assert report.bounds.auroc > 0.65
    assert 0.1 * report.claimed < report.bounds.epsilon <= report.claimed
    sensitivity = report.checks[-1]
    assert sensitivity.measured > 0.99 * sensitivity.limit


@pytest.mark.parametrize(
    ("privacy", "bits", "rotation"),
    [
        (replace(CLIENT, clip_norm=AdaptiveClipping(initial=2.0)), 32, False),
        (replace(RECORD, records=3000), 16, True),
    ],
    ids=["adaptive", "rotated"],
)
def test_an_adaptive_clip_and_a_rotation_pass(privacy: Any, bits: int, rotation: bool) -> None:
    config = silo(privacy, modulus_bits=bits)
    assert config.rotation is rotation
    assert audit_privacy(config, trials=300).passed


def test_the_claim_is_the_one_of_a_single_round_without_amplification() -> None:
    report = audit_privacy(silo(CLIENT), trials=100)
    ladder = with_length(silo(CLIENT), 1).ladder(rounds=1)
    assert ladder is not None
    assert report.claimed == ladder.guaranteed
    record = audit_privacy(silo(RECORD), trials=100)
    amplified = with_length(silo(RECORD), 1).ladder(rounds=1)
    assert amplified is not None
    assert record.claimed > amplified.guaranteed


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_every_bug_fails_its_check(defect: Defect) -> None:
    privacies = [RECORD] if defect.records else [CLIENT, RECORD]
    for privacy in privacies:
        report = audit_privacy(silo(privacy), trials=600, path=defect.path)
        failed = {check.name for check in report.checks if not check.passed}
        assert defect.detector in failed, (privacy.unit, report.to_dict())
        assert not report.passed


def test_bugs_of_records_are_not_bugs_of_clients() -> None:
    assert {defect.name for defect in defects_of(silo(RECORD))} > {defect.name for defect in defects_of(silo(CLIENT))}
    assert all(not defect.records for defect in defects_of(silo(CLIENT)))
    late = next(defect for defect in DEFECTS if defect.records)
    with pytest.raises(TypeError, match="record-level"):
        late.path(nothing(silo(CLIENT)), silo(CLIENT), secure_random())


def test_a_large_cohort_that_loses_one_share_is_noticed() -> None:
    """One part in forty of the variance."""
    config = silo(CLIENT, clients=42)
    lost = next(defect for defect in DEFECTS if defect.detector == "variance")
    report = audit_privacy(config, trials=100, path=lost.path)
    assert not {check.name: check for check in report.checks}["variance"].passed


@pytest.mark.parametrize("bits", [16, 32])
def test_the_canary_moves_the_sum_by_its_whole_norm(bits: int) -> None:
    config = with_length(silo(CLIENT, modulus_bits=bits, clients=5), 1)
    assert config.mechanism is not None
    moved = [
        int(from_ring(honest_path(update, config, secure_random()), modulus_bits=bits)[0])
        for update in [canary(config)] * 400
    ]
    spread = float(config.mechanism.share_variance) ** 0.5
    assert np.mean(moved) == pytest.approx(config.mechanism.int_bound, abs=6 * spread / 20 + 10)


def test_nothing_to_audit() -> None:
    with pytest.raises(ValueError, match="no privacy"):
        audit_privacy(silo(NoPrivacy(clip_norm=1.0)))
    with pytest.raises(ValueError, match="audit the same configuration with dropout_noise"):
        audit_privacy(silo(CLIENT, dropout_noise="removable"), trials=100)
    with pytest.raises(ValueError, match='with rounding="exact"'):  # clients would run other code than the audit
        audit_privacy(silo(replace(RECORD, rounding="sum")), trials=100)
    with pytest.raises(ValueError, match="at least 100"):
        audit_privacy(silo(CLIENT), trials=99)


def test_trials_follow_from_the_cohort() -> None:
    done: list[int] = []

    class Enough(Exception):
        pass

    def stop(_: int, of: int) -> None:
        done.append(of)
        raise Enough

    for clients in (7, 50):
        with pytest.raises(Enough):
            audit_privacy(silo(CLIENT, clients=clients), progress=stop)
    assert done == [150_000 // 5, 150_000 // 48]
    assert secagg.simulation.Simulation.client_type is secagg.simulation.ObservedClient

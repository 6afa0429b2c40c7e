"""A clip norm that follows the updates: tracked, agreed on by all parties, and free of charge."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dp import secure_random
from secagg import (
    AdaptiveClipping,
    AggregationConfig,
    ClientLevel,
    Contribution,
    InconsistentViewError,
    NoPrivacy,
    PolicyRefusal,
    PrivateWeights,
    Simulation,
    privacy_unit,
    statement,
)
from secagg.datasets import dirichlet_partition, load_digits
from secagg.pipeline import _indicator, _with_riders, finish, prepare
from tests.secagg.parties import Parties

SEED = b"a round"


def unit(rounds: int = 5, epsilon: float = 50.0, **rule: float) -> ClientLevel:
    adaptive = AdaptiveClipping(**{"initial": 1.0, **rule})
    return ClientLevel(clip_norm=adaptive, epsilon=epsilon, delta=1e-6, rounds=rounds)


def silo(
    privacy: ClientLevel | NoPrivacy, *, length: int = 20, clients: int = 8, bits: int = 32, dropouts: int = 0
) -> AggregationConfig:
    return AggregationConfig.cross_silo(
        like={"w": np.zeros(length)},
        clients=clients,
        max_dropouts=dropouts,
        max_colluders=0,
        privacy=privacy,
        modulus_bits=bits,
    )


def one_round(config: AggregationConfig, updates: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """The mean and the noised fraction, through the whole data path."""
    rand = secure_random()
    words = [prepare({"w": update}, config, rand=rand, seed=SEED) for update in updates]
    ring = (np.sum(words, axis=0, dtype=np.uint64) % 2**config.modulus_bits).astype(np.uint32)
    released = finish(ring, config, survivors=range(len(updates)), seed=SEED)
    assert released.unclipped is not None
    return released.mean["w"], released.unclipped


def updates_of_norm(norms: np.ndarray, length: int, random: np.random.Generator) -> list[np.ndarray]:
    directions = random.normal(size=(len(norms), length))
    return list(directions / np.linalg.norm(directions, axis=1, keepdims=True) * norms[:, None])


class TestEpsilon:
    def test_is_that_of_a_fixed_norm_with_one_coordinate_more(self) -> None:
        adaptive = silo(unit())
        fixed = silo(replace(unit(), clip_norm=7.0), length=21)
        assert adaptive.mechanism == fixed.mechanism
        assert adaptive.ladder() == fixed.ladder()
        assert adaptive.length == fixed.length == 21

    def test_does_not_depend_on_the_norm_of_the_round(self) -> None:
        config = silo(unit())
        low, high = config.adaptive.bounds(5)  # type: ignore[union-attr]
        for clip_norm in (low, 0.9, high):
            moved = config.with_clip_norm(clip_norm)
            assert moved.clip_norm == clip_norm
            assert moved.encoder.clip_norm == pytest.approx(clip_norm * config.encoder.clip_norm)
            assert moved.mechanism == config.mechanism
            assert moved.ladder() == config.ladder()
            assert moved.digest() != config.digest()

    def test_the_noise_is_the_published_split_between_update_and_count(self) -> None:
        """z of the update alone is (1/z^2 - 1/(2 sigma_b)^2)^(-1/2), sigma_b the deviation of the noised count."""
        for clients in (8, 60):
            config = silo(unit(epsilon=4.0), clients=clients)
            assert config.mechanism is not None
            assert config.count_stddev is not None
            z = math.sqrt(clients * config.mechanism.share_variance) / config.mechanism.int_bound
            sigma_b = config.count_stddev * clients
            update = z / math.sqrt(1 - config.indicator**2)
            assert update == pytest.approx((z**-2 - (2 * sigma_b) ** -2) ** -0.5, rel=1e-12)
            assert config.count_stddev == pytest.approx(0.05) or config.indicator == 0.25

    def test_update_and_indicator_together_stay_within_int_bound(self) -> None:
        """In exact integers, with coins that all round up, for updates on either side of the clip."""
        config = silo(unit(), length=300)
        assert config.mechanism is not None
        quiet = secure_random()
        random = np.random.default_rng(0)
        for norm in (1e-9, 0.5, 0.97, 1.0, 1e6):
            update = updates_of_norm(np.array([norm]), 300, random)[0]
            for rand in (b"\xff".__mul__, b"\0".__mul__, quiet):
                vector = _with_riders(Contribution(update={"w": update}), config, None)
                assert abs(vector[-1]) == _indicator(config)
                integers = config.encoder.encode(vector, rand=rand)
                assert sum(q * q for q in integers.tolist()) <= config.mechanism.int_bound**2

    def test_the_neighbour_is_a_client_that_sends_nothing_not_one_that_votes_for_a_zero_update(self) -> None:
        """The vote of a zero update stands opposite to that of a long one: together they are further apart."""
        config = silo(unit(epsilon=1.0), length=300)
        assert config.mechanism is not None

        def integers(size: float) -> np.ndarray:
            vector = _with_riders(Contribution(update={"w": np.full(300, size)}), config, None)
            return config.encoder.encode(vector, rand=b"\0".__mul__)

        bound = config.mechanism.int_bound**2
        assert sum(q * q for q in integers(9.0).tolist()) <= bound
        assert sum(q * q for q in (integers(9.0) - integers(0.0)).tolist()) > bound
        assert "whole contribution is replaced by zero" in config.privacy.adjacency


class TestTracking:
    @pytest.mark.parametrize(("quantile", "initial"), [(0.5, 30.0), (0.5, 0.03), (0.8, 1.0)])
    def test_the_norm_comes_to_the_quantile_and_stays(self, quantile: float, initial: float) -> None:
        rounds, clients = 60, 40
        config = silo(
            unit(rounds, 2000.0, initial=initial, target_quantile=quantile, learning_rate=0.3), clients=clients
        )
        random = np.random.default_rng(1)
        course = []
        for _ in range(rounds):
            updates = updates_of_norm(random.lognormal(0.5, 0.5, size=clients), 20, random)
            mean, fraction = one_round(config, updates)
            assert mean.shape == (20,)
            config = config.with_clip_norm(config.next_clip_norm(fraction))
            course.append(config.clip_norm)
        reached = np.exp(np.mean(np.log(course[-20:])))
        # The fraction has a slope of 0.8 / 0.5 in the logarithm of the norm at the median, less at 0.8.
        expected = math.exp(0.5 + 0.5 * {0.5: 0.0, 0.8: 0.8416}[quantile])
        assert reached == pytest.approx(expected, rel=0.12)

    def test_the_fraction_has_the_stated_deviation(self) -> None:
        config = silo(unit(rounds=200, epsilon=100.0), length=1)
        assert config.count_stddev is not None
        updates = [np.array([0.01])] * 5 + [np.array([100.0])] * 3
        fractions = [one_round(config, updates)[1] for _ in range(300)]
        assert np.mean(fractions) == pytest.approx(5 / 8, abs=5 * config.count_stddev / math.sqrt(300))
        assert np.std(fractions) == pytest.approx(config.count_stddev, rel=0.2)

    def test_noise_that_is_taken_out_is_not_in_the_stated_deviation(self) -> None:
        arguments = {"like": {"w": np.zeros(20)}, "clients": 8, "max_dropouts": 3, "max_colluders": 0}
        config = AggregationConfig.cross_silo(**arguments, privacy=unit(epsilon=4.0), dropout_noise="removable")
        assert config.count_stddev is not None
        mean = config.noise_stddev(8) / 8 / config.encoder.clip_norm  # what `finish` leaves in, over int_bound
        assert config.count_stddev == pytest.approx(mean / (2 * config.indicator), rel=1e-12)

    def test_rounding_and_riders_take_nothing_from_clip_or_indicator(self) -> None:
        """Coarse integers, weights and metrics: still the clip is clip_norm and the fraction is the fraction."""
        config = AggregationConfig.cross_silo(
            like={"w": np.zeros(3)},
            clients=8,
            max_dropouts=0,
            max_colluders=0,
            privacy=unit(epsilon=1e6, initial=2.0),
            weights=PrivateWeights(largest=10.0),
            metrics={"loss": (0.0, 5.0)},
        )
        assert config.length == 3 + 2 + 1
        rand = secure_random()
        words = [
            prepare(
                Contribution(update={"w": np.array([norm, 0.0, 0.0])}, weight=10.0, metrics={"loss": 4.0}),
                config,
                rand=rand,
            )
            for norm in [1.0] * 5 + [100.0] * 3
        ]
        released = finish(np.sum(words, axis=0, dtype=np.uint32), config, survivors=range(8))
        assert config.count_stddev is not None
        assert released.unclipped == pytest.approx(5 / 8, abs=6 * config.count_stddev)
        noise = config.noise_stddev(8)
        assert released.mean["w"][0] * released.weight / 10 == pytest.approx(5 * 1.0 + 3 * 2.0, abs=8 * noise)

    def test_it_rides_through_a_rotation(self) -> None:
        config = silo(unit(epsilon=400.0), length=100_000, clients=20, bits=16)
        assert config.rotation
        random = np.random.default_rng(2)
        norms = np.array([0.1] * 15 + [50.0] * 5)
        updates = updates_of_norm(norms, 100_000, random)
        _, fraction = one_round(config, updates)
        assert config.count_stddev is not None
        assert fraction == pytest.approx(0.75, abs=6 * config.count_stddev)

    def test_on_real_updates(self) -> None:
        """Softmax regression on digits, three local steps a round: the norm follows the true median down."""
        data = load_digits()
        parts = dirichlet_partition(data.labels, clients=16, alpha=1.0, seed=1, minimum=20)
        targets = np.eye(10)[data.labels]
        config = silo(unit(40, 2000.0, initial=10.0, learning_rate=0.5), length=640, clients=16)
        model = np.zeros((64, 10))
        ratios = []
        for _ in range(40):
            updates = []
            for part in parts:
                own = model.copy()
                for _ in range(3):
                    scores = np.exp(data.features[part] @ own)
                    error = scores / scores.sum(1, keepdims=True) - targets[part]
                    own -= 0.5 * data.features[part].T @ error / len(part)
                updates.append((own - model).ravel())
            mean, fraction = one_round(config, updates)
            model += mean.reshape(64, 10)
            ratios.append(config.clip_norm / np.median([np.linalg.norm(update) for update in updates]))
            config = config.with_clip_norm(config.next_clip_norm(fraction))
        assert ratios[0] > 4
        assert 0.7 < np.exp(np.mean(np.log(ratios[-15:]))) < 1.4
        accuracy = np.mean((data.features @ model).argmax(1) == data.labels)
        assert accuracy > 0.8


class TestParties:
    def test_all_clients_follow_the_server(self) -> None:
        config = silo(unit(initial=100.0), clients=5, dropouts=1)
        updates = {client: {"w": np.full(20, 0.01)} for client in range(1, 6)}
        simulation = Simulation(config, clients=updates)
        norms = []
        for _ in range(3):
            result = simulation.round(updates, drop={2})
            norms.append(result.config.clip_norm)
            assert result.unclipped is not None
            assert result.config.next_clip_norm(result.unclipped) < result.config.clip_norm
            assert result.to_dict()["unclipped"] == result.unclipped
        assert norms[0] == 100.0
        assert norms[0] > norms[1] > norms[2]

    def parties(self, privacy: ClientLevel | NoPrivacy) -> Parties:
        return Parties(silo(privacy, clients=5))

    def test_another_norm_than_the_servers_is_noticed(self) -> None:
        parties = self.parties(unit())
        invitation = parties.server.begin()[0].data
        with pytest.raises(InconsistentViewError, match="compare config digests"):
            parties.clients[1].begin(invitation, clip_norm=1.1)
        parties.clients[1].begin(invitation, clip_norm=1.0)
        with pytest.raises(InconsistentViewError):
            parties.clients[1].begin(invitation, clip_norm=1.1)
        assert parties.clients[1].config.clip_norm == 1.0  # the round that is open is scaled as it was agreed

    @pytest.mark.parametrize("clip_norm", [1e-9, 1e9, 0.0, -1.0, math.nan, math.inf])
    def test_a_norm_that_nothing_honest_leads_to_is_refused(self, clip_norm: float) -> None:
        parties = self.parties(unit())
        invitation = parties.server.begin()[0].data
        with pytest.raises(PolicyRefusal, match="can only come to lie in"):
            parties.clients[1].begin(invitation, clip_norm=clip_norm)

    def test_a_fixed_norm_stays(self) -> None:
        parties = self.parties(NoPrivacy(clip_norm=1.0))
        invitation = parties.server.begin()[0].data
        with pytest.raises(PolicyRefusal, match=r"fixed at 1\.0"):
            parties.clients[1].begin(invitation, clip_norm=2.0)
        parties.clients[1].begin(invitation, clip_norm=1.0)


class TestConfiguration:
    def test_from_a_table(self) -> None:
        table = {"initial": 2, "target_quantile": 0.7}
        data = {"unit": "client", "clip_norm": table, "epsilon": 4.0, "delta": 1e-6, "rounds": 3}
        parsed = privacy_unit(data)
        assert parsed == unit(3, 4.0, initial=2, target_quantile=0.7)
        same = silo(unit(3, 4.0, initial=2.0, target_quantile=0.7))
        assert silo(parsed).digest() == same.digest()  # type: ignore[arg-type]

    @pytest.mark.parametrize("table", [{}, {"target_quantile": 0.5}, {"initial": 1.0, "speed": 2}])
    def test_a_wrong_table_is_refused(self, table: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="clip_norm, as a table"):
            privacy_unit({"unit": "client", "clip_norm": table, "epsilon": 4.0, "delta": 1e-6, "rounds": 3})

    def test_explained(self) -> None:
        config = silo(unit(target_quantile=0.7))
        lines = {line.name: line for line in config.explain()}
        assert lines["indicator"].value == config.indicator
        assert lines["count_stddev"].value == config.count_stddev
        assert "70%" in lines["clip_norm"].reason
        assert "whether the update was clipped: they ride in the same vector" in statement(config)
        assert config.digest() != silo(unit(target_quantile=0.6)).digest()
        assert config.digest() != silo(unit(target_quantile=0.7, learning_rate=0.1)).digest()

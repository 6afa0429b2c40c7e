"""Views hold what their adversary could see: no more, no less, to the last bit or to the noise."""

import numpy as np
import pytest

pytest.importorskip("torch")

from secagg import AggregationConfig, ClientLevel, NoPrivacy
from secagg.attacks.outcome import Expectation, Outcome
from secagg.attacks.views import Parties, PlainView, flat, observe

LENGTH = 40


def config(clients=6, *, privacy=None, **other):
    return AggregationConfig.cross_silo(
        like={"a": np.zeros((4, 5)), "b": np.zeros(LENGTH - 20)}, clients=clients,
        **{"max_dropouts": 1, "max_colluders": 1, "privacy": privacy or NoPrivacy(clip_norm=10.0), **other},
    )  # fmt: skip


def updates(agreed, seed=0):
    rng = np.random.default_rng(seed)
    return {
        client: agreed.layout.unflatten(rng.normal(size=agreed.layout.length) / 5)
        for client in range(1, agreed.clients + 1)
    }


@pytest.mark.parametrize("bits", [32, 21])
def test_sums_are_those_of_the_clients_in_them(bits):
    agreed = config(modulus_bits=bits)
    sent = updates(agreed)
    seen = observe(sent, agreed, drop={4}, colluders={1, 2, 4})
    step = 6 * 10.0 / agreed.encoder.int_bound  # each client rounds each coordinate by less than one step
    assert seen.server.survivors == {1, 2, 3, 5, 6}
    np.testing.assert_allclose(flat(seen.server), sum(flat(sent[c]) for c in (1, 2, 3, 5, 6)), atol=step)
    for view in (seen.sybils, seen.colluders):
        np.testing.assert_allclose(flat(view), sum(flat(sent[c]) for c in (3, 5, 6)), atol=step)
        assert view.clients == 3


def test_a_masked_vector_is_not_the_update_and_never_the_same_twice():
    agreed = config()
    sent = updates(agreed)
    first, second = (observe(sent, agreed).network.masked(3) for _ in range(2))
    room = 10.0 * 2**31 / agreed.encoder.int_bound
    for masked in (first, second):
        assert abs(np.corrcoef(masked, flat(sent[3]))[0, 1]) < 0.7
        assert np.abs(masked).max() > 0.5 * room  # it fills the ring
    assert not np.isclose(first, second).any()


def test_a_contribution_is_known_only_after_it_was_made():
    agreed = config()
    parties = Parties(agreed, clients=range(1, 7))
    for client in (3, 99):
        with pytest.raises(ValueError, match=f"client {client} has not contributed"):
            parties.contribution(client)
    observe(updates(agreed), agreed, simulation=parties)
    assert len(parties.contribution(3)) == LENGTH


def test_a_client_without_masked_vector_is_named():
    agreed = config()
    seen = observe(updates(agreed), agreed, drop={2})
    with pytest.raises(ValueError, match="client 2"):
        seen.network.masked(2)


def test_sybils_strip_their_own_noise_and_know_what_is_left():
    agreed = config(privacy=ClientLevel(clip_norm=10.0, epsilon=4.0, delta=1e-6, rounds=30))
    sent = updates(agreed)
    errors = {"server": [], "sybils": []}
    for _ in range(15):
        seen = observe(sent, agreed, colluders={1, 2, 3, 4, 5})
        errors["server"].append(flat(seen.server) - sum(flat(sent[c]) for c in range(1, 7)))
        errors["sybils"].append(flat(seen.sybils) - flat(sent[6]))
    assert seen.server.noise_stddev == pytest.approx(agreed.noise_stddev(6))
    assert seen.sybils.noise_stddev == pytest.approx(seen.server.noise_stddev / np.sqrt(6))
    # 600 draws: the standard error of a standard deviation is 3 %.
    assert np.std(errors["server"]) == pytest.approx(seen.server.noise_stddev, rel=0.15)
    assert np.std(errors["sybils"]) == pytest.approx(seen.sybils.noise_stddev, rel=0.15)


def test_updates_are_taken_as_they_come_from_elsewhere():
    parts = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7.0])]
    whole = np.array([0, 1, 2, 3, 4, 5, 7.0])
    for form in (parts, dict(enumerate(parts)), tuple(parts), whole, whole.astype(np.float32), PlainView(vector=whole)):
        np.testing.assert_array_equal(flat(form), whole)
        assert flat(form).dtype == np.float64
    with pytest.raises(ValueError, match="no arrays"):
        flat([])


@pytest.mark.parametrize(
    ("value", "expectation", "verdict"),
    [
        (0.6, Expectation.HOLDS, "broken"),
        (0.4, Expectation.HOLDS, "holds"),
        (0.6, Expectation.LEAKS, "leaks"),
        (0.4, Expectation.LEAKS, "weak attack"),
        (0.6, Expectation.OPEN, "leaks"),
        (0.4, Expectation.OPEN, "holds"),
    ],
)
def test_a_verdict_follows_from_what_was_claimed_before(value, expectation, verdict):
    facts = {"attack": "a", "metric": "m", "prior": 0.3}
    outcome = Outcome(value=value, threshold=0.5, expectation=expectation, **facts)
    assert outcome.verdict == verdict
    assert outcome.to_dict()["verdict"] == verdict
    with pytest.raises(ValueError, match="below the prior"):
        Outcome(value=value, threshold=0.2, expectation=expectation, **facts)

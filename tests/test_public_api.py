"""The public names: they exist, they are documented, and what holds a secret never shows it."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import os
import pickle
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import secagg
from dp import DistributedSkellam, secure_random
from secagg import (
    Client,
    ContributionNeeded,
    Identity,
    MemoryHistory,
    Phase,
    ProtocolError,
    Roster,
    SendMessage,
    Server,
)
from tests.secagg.parties import memory_ledger, private_config, updates_for

SECTION = re.compile(r"^ *(Args|Attributes|Returns|Yields|Raises|Example):$", re.MULTILINE)


def parameters(function: Callable[..., object]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in {"self", "cls"}]


def public_callables() -> Iterator[tuple[str, Callable[..., object]]]:
    """Public functions, and the public methods that our own classes define."""
    for name in secagg.__all__:
        item = getattr(secagg, name)
        if inspect.isfunction(item):
            yield name, item
        elif inspect.isclass(item):
            for attribute, value in vars(item).items():
                method = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                if not attribute.startswith("_") and inspect.isfunction(method):
                    yield f"{name}.{attribute}", method


CALLABLES = list(public_callables())
NAMES = [name for name, _ in CALLABLES]


class TestNames:
    def test_resolve_and_are_sorted(self) -> None:
        assert sorted(set(secagg.__all__)) == list(secagg.__all__)
        for name in secagg.__all__:
            assert getattr(secagg, name) is not None

    def test_everything_public_is_listed(self) -> None:
        """What the package binds from its own modules, and does not list, is private by its name or a module."""
        bound = {
            name for name, value in vars(secagg).items() if not name.startswith("_") and not inspect.ismodule(value)
        }
        assert bound - set(secagg.__all__) <= {"VERSION", "check_siblings"}

    @pytest.mark.parametrize("name", secagg.__all__)
    def test_are_documented(self, name: str) -> None:
        text = inspect.getdoc(getattr(secagg, name))
        assert text
        assert not text.startswith(f"{name}(")  # what dataclasses write by themselves
        assert text.splitlines()[0].rstrip()[-1] in ".:?", "the first line is a sentence"

    @pytest.mark.parametrize(("name", "function"), CALLABLES, ids=NAMES)
    def test_functions_are_documented(self, name: str, function: Callable[..., object]) -> None:
        text = inspect.getdoc(function)
        assert text, name
        if len(parameters(function)) > 2:
            described = SECTION.search(text) or re.search(r"[Aa]rguments as for `\w+`", text)
            assert described, f"{name} has {len(parameters(function))} arguments and no section"
        for argument in re.findall(r"^    (\w+): ", text.partition("Args:")[2].partition("\n\n")[0], re.MULTILINE):
            assert argument in parameters(function), f"{name} documents {argument}, which it does not take"

    @pytest.mark.parametrize(("name", "function"), CALLABLES, ids=NAMES)
    def test_functions_are_annotated(self, name: str, function: Callable[..., object]) -> None:
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, name
        for argument in parameters(function):
            assert signature.parameters[argument].annotation is not inspect.Parameter.empty, f"{name}({argument})"

    def test_errors_have_two_roots(self) -> None:
        """Stop spending, or drop a peer: one `except` for each."""
        errors = [item for item in vars(secagg).values() if inspect.isclass(item) and issubclass(item, Exception)]
        assert len(errors) > 10
        for error in errors:
            assert issubclass(error, secagg.PrivacyError) != issubclass(error, ProtocolError)

    @pytest.mark.parametrize("module", ["secagg", "secagg.layout"])
    def test_examples_run(self, module: str) -> None:
        outcome = doctest.testmod(importlib.import_module(module), extraglobs={"np": np, "Layout": secagg.Layout})
        assert outcome.attempted > 0
        assert outcome.failed == 0


class TestSecrets:
    class Recorder:
        """A source of randomness that remembers what it gave."""

        def __init__(self) -> None:
            self.given: list[bytes] = []

        def __call__(self, count: int) -> bytes:
            self.given.append(os.urandom(count))
            return self.given[-1]

    def shown(self, secret: bytes, text: str) -> bool:
        forms = (secret.hex(), repr(secret)[2:-1], str(list(secret))[1:-1], str(int.from_bytes(secret, "big")))
        return any(form in text for form in forms)

    def test_reprs_never_show_one(self) -> None:
        """Keys, seeds and shares, at every moment of a round."""
        recorder = self.Recorder()
        config = private_config()
        identities = {client: Identity.generate(rand=recorder) for client in range(1, 6)}
        roster = Roster({client: key.public for client, key in identities.items()})  # type: ignore[misc]
        server = Server(config, roster=roster, ledger=memory_ledger(config))
        clients = {
            client: Client(
                config, client, identity=identities[client], roster=roster, history=MemoryHistory(),
                ledger=memory_ledger(config), rand=recorder,
            )
            for client in identities
        }  # fmt: skip
        updates = updates_for(config)
        looked = 0

        def look() -> None:
            nonlocal looked
            for owner in (*identities.values(), *clients.values(), server):
                inner = [value for value in vars(owner).values() if not isinstance(value, bytes | dict | list)]
                texts = [form(item) for item in (owner, *inner) for form in (repr, str)]
                text = "\n".join(part for part in texts if len(part) < 100_000)
                assert not any(self.shown(secret, text) for secret in recorder.given if len(secret) >= 16)
                looked += 1

        def handle(client: int, events: list[object]) -> None:
            for event in events:
                if isinstance(event, ContributionNeeded):
                    handle(client, clients[client].contribute(updates[client]))  # type: ignore[arg-type]
                elif isinstance(event, SendMessage):
                    server.receive(client, event.data)

        for message in server.begin():
            handle(message.to, clients[message.to].begin(message.data))  # type: ignore[arg-type, index]
        while server.phase is not Phase.FINISHED:
            look()
            for event in server.close_phase():
                if isinstance(event, SendMessage):
                    handle(event.to, clients[event.to].receive(event.data))  # type: ignore[arg-type, index]
        assert looked == 55
        assert len(recorder.given) > 5 * 4

    def test_errors_never_show_an_update(self) -> None:
        config = private_config()
        value = 0.123456789
        for bad in (
            {"w": np.array([value, np.nan, value, value])},
            {"w": np.full(5, value)},
            {"v": np.full(4, value)},
            np.full(4, value),
        ):
            with pytest.raises(secagg.UnsafeUpdateError) as caught:
                secagg.simulate({**updates_for(config), 3: bad}, config)  # type: ignore[dict-item]
            assert "0.1234" not in str(caught.value)

    @pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_cannot_be_copied_or_stored_by_accident(self, copier: Callable[[object], object]) -> None:
        config = private_config()
        identity = Identity.generate()
        mechanism = config.mechanism
        assert isinstance(mechanism, DistributedSkellam)
        noised = mechanism.privatize(np.zeros(4, np.int64), rand=secure_random())
        for secret in (identity, noised):
            assert repr(secret).strip("<>") in {"Identity", "NoisedIntegers"}
            with pytest.raises(TypeError):
                copier(secret)

    def test_parties_cannot_be_pickled(self) -> None:
        config = private_config()
        identities = {client: Identity.generate() for client in range(1, 6)}
        roster = Roster({client: key.public for client, key in identities.items()})  # type: ignore[misc]
        client = Client(
            config, 1, identity=identities[1], roster=roster, history=MemoryHistory(), ledger=memory_ledger(config)
        )
        with pytest.raises(TypeError):
            pickle.dumps(client)

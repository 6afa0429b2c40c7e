"""`SecAggMod`: a Flower client mod that lets a node's update leave only clipped, noised and masked.

Rules:

1. The user's train function runs unchanged, between the mod's stages; what it returns never leaves in clear. Its
   update is (returned arrays - received arrays); its number of examples and the agreed metrics travel in the same
   masked vector; all else it returns stays on the node.
2. The node goes by its own agreement, roster, history and ledger (`node`). What the server says is checked against
   them, and refused with an error that names what is wrong and holds nothing of the data.
3. Whatever is not a stage of a round is refused: a plain train message, an evaluate message, a query. Whoever wants
   such answers in clear gives the mod to the train function alone, `@app.train(mods=[SecAggMod()])`.
4. An exception of the train function ends the round for this node. Its text stays in the node's log: Flower would send
   it to the server, and it may quote the data.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from dp import PrivacyError, UnsafeUpdateError
from protocols import (
    ContributionNeeded,
    InconsistentViewError,
    MalformedMessageError,
    Phase,
    PolicyRefusal,
    ProtocolError,
    SendMessage,
)
from protocols.wire import Invitation, decode, message_limit

from ...riders import Contribution, PrivateWeights
from .agreement import read_layout
from .node import Node, NodeClient, Parked
from .records import RECORD, WEIGHT, Stage, arrays_of, field, instructions_of

_REFUSED = 6  # Flower's ErrorCode.MOD_FAILED_PRECONDITION
_LOG = logging.getLogger(__name__)


class SecAggMod:
    """Secure aggregation with distributed noise for a `ClientApp`: `ClientApp(mods=[SecAggMod()])`.

    Put it first, so that it is outermost: mods after it see the plain message and the plain update, on the node.

    A node's directory is the one that its SuperNode was started with,
    `--node-config 'secagg-node="/path"'`. In a simulation it is one of the directories that `SecAggGrid` made for this
    run.

    Args:
        simulation: directory of simulated nodes (`simulate_nodes`), for simulations started from Python.
    """

    def __init__(self, simulation: str | Path | None = None) -> None:
        self._simulation = None if simulation is None else str(simulation)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Handles one message of the server; see `flwr.clientapp.typing.Mod`."""
        try:
            record = message.content.config_records.get(RECORD)
            if record is None or message.metadata.message_type.partition(".")[0] != "train":
                raise PolicyRefusal(
                    f"this node answers rounds of secure aggregation only, no {message.metadata.message_type} "
                    "message in clear"
                )
            with Node(self._directory(context)) as node:
                answer = _Turn(node, record, context).run(message, call_next)
        except UnsafeUpdateError as error:  # its text may quote a value of the update
            _LOG.error("the update is not usable: %s", error)
            return _refusal("UnsafeUpdateError: the update of this node is not usable; its log says why", message)
        except (ProtocolError, PrivacyError, ValueError) as error:
            _LOG.warning("refused: %s", error)
            return _refusal(f"{type(error).__name__}: {error}", message)
        return Message(RecordDict({RECORD: answer}), reply_to=message)

    def _directory(self, context: Context) -> Path:
        own = context.node_config.get("secagg-node")
        if own is not None:
            return Path(str(own))
        base = self._simulation or simulation_directory(context.run_config, context.run_id)
        if base is None:
            raise PolicyRefusal(
                "this node has no secagg directory: start its SuperNode with --node-config 'secagg-node=\"PATH\"'"
            )
        if not (Path(base) / SIMULATION).is_file():
            raise PolicyRefusal(f"{base} holds no simulated nodes")
        return Path(base) / node_name(int(context.node_config.get("partition-id", -1)) + 1)


SIMULATION = "SIMULATION"  # marks a directory of nodes that exist only in a simulation


def simulation_directory(run_config: Mapping[str, object], run_id: int) -> Path | None:
    """Where the nodes of a simulated run keep their files; None unless `secagg-simulation` is on."""
    if run_config.get("secagg-simulation") is not True:
        return None
    home = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr"))
    return home / "secagg-simulation" / f"run-{run_id}"


def node_name(client: int) -> str:
    """The directory of one simulated node."""
    return f"client-{client}"


class _Turn:
    """One message, on one node."""

    def __init__(self, node: Node, record: ConfigRecord, context: Context) -> None:
        self._node = node
        self._record = record
        self._stage = Stage(field(record, "stage", str))
        self._context = context
        state = context.state.config_records.get(RECORD, ConfigRecord())
        self._parked = _parked(state, "session")
        self._keys = _parked(state, "keys")
        self._layout = str(state.get("layout", ""))
        self._instructions = str(state.get("instructions", ""))
        self._clip_norm = state.get("clip-norm")

    def run(self, message: Message, call_next: ClientAppCallable) -> ConfigRecord:
        """The answer to this message; the state for the next one is in the context."""
        opening = "invitation" in self._record and self._stage in (Stage.ADVERTISE, Stage.SHARE)
        if opening:
            self._node.agreement.check(field(self._record, "agreement", str))
            self._layout = field(self._record, "layout", str)
            self._instructions = field(self._record, "instructions", str)
            self._clip_norm = field(self._record, "clip-norm", float)
        elif not self._layout:
            raise PolicyRefusal("no round is open on this node: it was restarted, or left the round")
        clip_norm = self._clip_norm if isinstance(self._clip_norm, float) else None
        config = self._node.agreement.config(read_layout(self._layout), self._instructions, clip_norm=clip_norm)
        with self._node.client(config) as client:
            self._context.state[RECORD] = ConfigRecord()  # what was there is used up, whatever happens now
            with _Leaving(client):
                sent = self._open(client) if opening else self._go_on(client, message, call_next)
                if client.phase is Phase.FINISHED:
                    self._keep(None, client.close_round())
                else:
                    self._keep(client.park(), None)
        return ConfigRecord({"client": int(self._node.client_id), "data": sent})

    def _open(self, client: NodeClient) -> bytes:
        invitation = field(self._record, "invitation", bytes)
        model = decode(invitation, Invitation, limit=message_limit(client.config.clients)).model
        in_advance = self._stage is Stage.SHARE
        if in_advance and self._keys is None:
            raise PolicyRefusal("this node has lost the keys that it had sent in advance")
        sent = client.open_round(invitation, model=model, keys=self._keys if in_advance else None)
        return _one(client.receive(field(self._record, "data", bytes))) if in_advance else sent[0]

    def _go_on(self, client: NodeClient, message: Message, call_next: ClientAppCallable) -> bytes:
        if self._parked is None:
            raise PolicyRefusal("no round is open on this node: it was restarted, or left the round")
        model = client.resume(self._parked, sending=self._stage is Stage.CONTRIBUTE)
        events = client.receive(field(self._record, "data", bytes))
        if not any(isinstance(event, ContributionNeeded) for event in events):
            return _one(events)
        if self._stage is not Stage.CONTRIBUTE:
            raise MalformedMessageError(f"the server asks for a contribution in stage {self._stage.value!r}")
        arrays = arrays_of(message.content, "the server's message")
        if client.config.layout.model_digest(arrays) != model:
            raise InconsistentViewError("the server sends another model than the one that the round was opened on")
        if instructions_of(message.content) != self._instructions:
            raise InconsistentViewError("the server gives other instructions than those that the round was opened with")
        return _one(client.contribute(self._train(client, message, arrays, call_next)))

    def _train(
        self,
        client: NodeClient,
        message: Message,
        arrays: Mapping[str, NDArray[np.floating]],
        call_next: ClientAppCallable,
    ) -> Contribution:
        """Runs the user's train function on the plain message, and takes from its reply what was agreed."""
        received = {name: array.copy() for name, array in arrays.items()}
        del message.content[RECORD]
        with _Unquoted():
            reply = call_next(message, self._context)
            if reply.has_error():
                raise PolicyRefusal("the train function answered with an error")
            layout = client.config.layout
            returned = arrays_of(reply.content, "the train function's reply")
            dtypes = {entry.name: entry.dtype for entry in layout.entries}
            # Float64 models trained in float32, and the reverse, are common; other kinds are refused by the layout.
            trained = {
                name: array.astype(dtypes.get(name, array.dtype)) if array.dtype.kind == "f" else array
                for name, array in returned.items()
            }
            layout.flatten(trained)  # names, shapes and dtypes, before anything is subtracted
        numbers = {name: value for record in reply.content.metric_records.values() for name, value in record.items()}
        riders = client.config.riders
        return Contribution(
            update={name: trained[name] - received[name] for name in received},
            weight=_number(numbers, WEIGHT) if isinstance(riders.weights, PrivateWeights) else None,
            metrics={name: _number(numbers, name) for name, _, _ in riders.metrics},
        )

    def _keep(self, session: Parked | None, keys: Parked | None) -> None:
        kept = ConfigRecord({"layout": self._layout, "instructions": self._instructions})
        if self._clip_norm is not None:
            kept["clip-norm"] = self._clip_norm
        for name, parked in (("session", session), ("keys", keys)):
            if parked is not None:
                kept[f"{name}-number"], kept[name] = parked.number, parked.sealed
        self._context.state[RECORD] = kept


class _Leaving:
    """Whatever goes wrong ends the round for this node: its budget is settled and no state is left."""

    def __init__(self, client: NodeClient) -> None:
        self._client = client

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(PrivacyError):  # the first error is the one to report
                self._client.leave()


class _Unquoted:
    """Turns any exception of the user's code into one that quotes nothing of it."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Exception):
            _LOG.error("the train function failed", exc_info=error)
            raise PolicyRefusal("training failed on this node; its log says why") from None


def _refusal(reason: str, message: Message) -> Message:
    return Message(Error(code=_REFUSED, reason=reason), reply_to=message)


def _parked(state: ConfigRecord, name: str) -> Parked | None:
    number, sealed = state.get(f"{name}-number"), state.get(name)
    return Parked(number=number, sealed=sealed) if isinstance(number, int) and isinstance(sealed, bytes) else None


def _one(events: Sequence[object]) -> bytes:
    (data,) = [event.data for event in events if isinstance(event, SendMessage)]
    return data


def _number(numbers: Mapping[str, object], name: str) -> float:
    value = numbers.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PolicyRefusal(f"the train function returned no number named {name!r}")
    return float(value)

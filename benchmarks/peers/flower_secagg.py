"""Flower's SecAgg+: its server workflow and its client module, all parties of one round in this process.

- A grid that calls the clients stands where Flower has its network; workers answer some of the clients' messages.
- Server: CPU seconds of the workflow's four stages, time in the grid taken off. Client: the median, over those that
  survive and ran in this process, of what `secaggplus_mod` takes, training taken off.
- Dropouts fall silent after they shared their keys. The mean is compared with the plain one.
- Upload: the answers' size as Flower's own messages.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from copy import deepcopy
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.pool import Pool
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLIP, LEVELS = 8.0, 1 << 22  # Flower's defaults
ALONE = 3  # survivors that run in this process, with nothing beside them


def measure(*, clients: int, dimension: int, degree: int, dropouts: int, processes: int) -> dict[str, Any]:
    """One round; `degree` neighbours and the client itself hold shares, two thirds of them and one open a secret."""
    from flwr.app import ConfigRecord, Context, RecordDict
    from flwr.common import parameters_to_ndarrays
    from flwr.server.compat.legacy_context import LegacyContext
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
    from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow, WorkflowState
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    logging.getLogger("flwr").setLevel(logging.ERROR)
    holders = min(degree + 1, clients)
    workflow = SecAggPlusWorkflow(
        num_shares=holders, reconstruction_threshold=2 * holders // 3 + 1, max_weight=1.0, clipping_range=CLIP,
        quantization_range=LEVELS,
    )  # fmt: skip
    with get_context("fork").Pool(processes) as pool:
        grid = _Grid(clients=clients, dimension=dimension, dropouts=dropouts, pool=pool)
        strategy: Any = _Strategy(clients)
        context = LegacyContext(
            Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}),
            strategy=strategy, client_manager=strategy,
        )  # fmt: skip
        context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
        context.state.array_records[MAIN_PARAMS_RECORD] = _no_parameters()
        state: Any = WorkflowState()
        began = time.process_time()
        for stage in ("setup", "share_keys", "collect_masked_vectors", "unmask"):
            if not getattr(workflow, f"{stage}_stage")(grid, context, state):
                raise RuntimeError(f"stage {stage} stopped the round")
        server = time.process_time() - began - grid.cpu
    mean = parameters_to_ndarrays(strategy.mean)[0]
    plain = sum(update(client, dimension) for client in grid.survivors) / len(grid.survivors)
    if not np.allclose(mean, plain, rtol=0, atol=2 * CLIP / LEVELS):
        raise RuntimeError("the mean is not the plain one")
    return {
        "version": version("flwr"),
        "server_s": server,
        "client_s": statistics.median(grid.client_cpu[client] for client in grid.alone),
        "upload_bytes": grid.upload[grid.alone[0]],
    }


def update(client: int, dimension: int) -> NDArray[np.float64]:
    """What a client sends: cheap, and different for each."""
    return (np.arange(dimension) * 31 + client * 17) % 1009 / 1009 - 0.5


class _Strategy:
    """Samples all clients, keeps the mean, averages nothing again."""

    def __init__(self, clients: int) -> None:
        self._clients = clients
        self.mean: Any = None

    def num_available(self) -> int:
        return self._clients

    def configure_fit(self, *_: Any) -> list[Any]:
        from types import SimpleNamespace

        from flwr.common import FitIns, Parameters

        nothing = Parameters(tensors=[], tensor_type="numpy.ndarray")
        return [(SimpleNamespace(node_id=one), FitIns(nothing, {})) for one in range(1, self._clients + 1)]

    def aggregate_fit(self, _round: int, results: Any, _failures: Any) -> tuple[None, dict[str, Any]]:
        self.mean = results[0][1].parameters
        return None, {}


class _Grid:
    """Hands messages to clients and answers back.

    Attributes:
        cpu: seconds of this process in here.
        client_cpu: seconds of each client.
        upload: bytes of each client's answers.
        survivors: clients that contribute.
        alone: those of them that run in this process.
    """

    def __init__(self, *, clients: int, dimension: int, dropouts: int, pool: Pool) -> None:
        from flwr.app import Context, RecordDict

        self._dimension, self._pool = dimension, pool
        self.survivors = list(range(dropouts + 1, clients + 1))
        self.alone = self.survivors[:ALONE]
        self._contexts = {
            one: Context(run_id=1, node_id=one, node_config={}, state=RecordDict(), run_config={})
            for one in range(1, clients + 1)
        }
        self.cpu = 0.0
        self.client_cpu: defaultdict[int, float] = defaultdict(float)
        self.upload: defaultdict[int, int] = defaultdict(int)

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        began = time.process_time()
        calls = []
        for message in messages:
            one = message.metadata.dst_node_id
            stage = message.content.config_records["secaggplus_configs"]["stage"]
            if one in self.survivors or stage in ("setup", "share_keys"):
                calls.append((message, self._contexts[one], self._dimension))
        here = [answer(call) for call in calls if call[1].node_id in self.alone]
        there = self._pool.imap_unordered(answer, [call for call in calls if call[1].node_id not in self.alone])
        answers = []
        for reply, context, cpu, size in (*here, *there):
            self._contexts[context.node_id] = context
            self.client_cpu[context.node_id] += cpu
            self.upload[context.node_id] += size
            answers.append(reply)
        self.cpu += time.process_time() - began
        return answers


def answer(call: tuple[Any, Any, int]) -> tuple[Any, Any, float, int]:
    """A client's answer to one message, its state after it, its CPU seconds, the answer's bytes."""
    from flwr.client.mod import secaggplus_mod
    from flwr.common.serde import recorddict_to_proto

    message, context, dimension = deepcopy(call)  # clients take apart what the workflow gives to all of them
    training = 0.0

    def train(request: Any, _context: Any) -> Any:
        nonlocal training
        began = time.process_time()
        trained = _fit_result(request, update(context.node_id, dimension))
        training = time.process_time() - began
        return trained

    began = time.process_time()
    reply = secaggplus_mod(message, context, train)
    cpu = time.process_time() - began - training
    return reply, context, cpu, recorddict_to_proto(reply.content).ByteSize()


def _fit_result(request: Any, trained: NDArray[np.float64]) -> Any:
    from flwr.app import Message
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
    from flwr.compat.common.recorddict_compat import fitres_to_recorddict

    result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([trained]), num_examples=1, metrics={})
    return Message(fitres_to_recorddict(result, True), reply_to=request)


def _no_parameters() -> Any:
    from flwr.app import ArrayRecord

    return ArrayRecord()


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))

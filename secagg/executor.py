"""Where the server expands masks when one thread is not enough: threads, processes, or a Ray cluster.

1. Each gives an object with the `map` of `concurrent.futures.Executor`: `Server(config, roster=..., map=pool.map)`.
   Results come in the order of the items, and with the same bits whatever runs them.
2. An item whose worker was lost is done again, up to `ATTEMPTS` times in all. Items are pure functions of their
   arguments, so nothing is added twice.
3. What no worker finished is computed in this process: slower, but the round is not lost. With `recompute=False` it is
   a `WorkersLostError` instead, and the round is aborted.
4. An exception that an item raises is no lost worker: it goes on to the caller.
5. Workers get seeds of masks. A cluster must be as trusted as the server itself, and so must the links within it.

Threads suffice on one machine: AES and additions release the interpreter lock. Processes are for hosts that limit
threads, Ray for several machines.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Protocol

from protocols import ProtocolError
from protocols.partial import Item, Result

ATTEMPTS = 3  # of one item: a worker that dies twice over the same item will die again

_log = logging.getLogger(__name__)


class WorkersLostError(ProtocolError):
    """Workers died over and over, and the caller wanted nothing computed elsewhere."""


class Pool(Protocol):
    """The `map` of `concurrent.futures.Executor`, for one iterable."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterable[Result]:
        """The result of `function` for every item, in order."""


@contextmanager
def threads(workers: int | None = None) -> Iterator[Executor]:
    """Threads of this process.

    Args:
        workers: how many; one for each processor, and a few, if None.

    Yields:
        A pool that ends with the block.
    """
    with ThreadPoolExecutor(workers) as pool:
        yield pool


@contextmanager
def processes(workers: int | None = None, *, recompute: bool = True) -> Iterator[Pool]:
    """Processes of this machine, started afresh: a script that uses them needs `if __name__ == "__main__"`.

    Args:
        workers: how many; one for each processor if None.
        recompute: whether this process computes what no worker finished.

    Yields:
        A pool that ends with the block. Its `map` raises `WorkersLostError` if workers die and `recompute` is False.
    """
    pool = _Processes(workers, recompute=recompute)
    try:
        yield pool
    finally:
        pool.close()


@contextmanager
def ray_cluster(*, recompute: bool = True) -> Iterator[Pool]:
    """The Ray cluster that this process is connected to; `ray.init(address="auto")` is the caller's, before.

    Every worker must be able to import the same version of this library.

    Args:
        recompute: whether this process computes what no worker finished.

    Yields:
        A pool. Its `map` raises `WorkersLostError` if workers die and `recompute` is False.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: this process is not connected to a cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("ray_cluster() needs Ray: pip install 'secagg[ray]'") from error
    if not ray.is_initialized():
        raise RuntimeError('no Ray cluster is connected: call ray.init(address="auto") first')
    yield _Ray(ray, recompute=recompute)


class _Processes:
    """A process pool that is replaced when one of its processes dies, for then none of its results can be had."""

    def __init__(self, workers: int | None, *, recompute: bool) -> None:
        self._workers, self._recompute = workers, recompute
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """The result of `function` for every item, in order."""
        pending = list(items)
        results: dict[int, Result] = {}
        given = 0
        for _ in range(ATTEMPTS):
            try:
                futures = self._submit(function, {place: item for place, item in enumerate(pending) if place >= given})
                while given < len(pending):
                    if given not in results:
                        results[given] = futures[given].result()
                    yield results.pop(given)
                    given += 1
                return
            except BrokenProcessPool:
                _log.warning("a worker process was lost; its part is done again")
                self.close()
        _refuse(self._recompute, lost=len(pending) - given)
        yield from map(function, pending[given:])

    def _submit(self, function: Callable[[Item], Result], items: dict[int, Item]) -> dict[int, Future[Result]]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._workers, mp_context=get_context("spawn"))
        return {place: self._pool.submit(function, item) for place, item in items.items()}

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None


class _Ray:
    """Tasks of a cluster; Ray itself repeats those whose worker or machine died."""

    def __init__(self, ray: Any, *, recompute: bool) -> None:
        self._ray, self._recompute = ray, recompute
        self._task = ray.remote(max_retries=ATTEMPTS - 1)(_call)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """The result of `function` for every item, in order."""
        pending = list(items)
        shared = self._ray.put(function)  # the seeds travel once to each machine, not with every item
        tasks = [self._task.remote(shared, item) for item in pending]
        lost = self._ray.exceptions
        for item, task in zip(pending, tasks, strict=True):
            try:
                result = self._ray.get(task)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except (lost.WorkerCrashedError, lost.NodeDiedError, lost.ObjectLostError, lost.OutOfMemoryError):
                _log.warning("a Ray worker was lost over and over")
                _refuse(self._recompute, lost=1)
                result = function(item)
            yield result


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    """What a Ray task does."""
    return function(item)


def _refuse(recompute: bool, *, lost: int) -> None:
    if not recompute:
        raise WorkersLostError(f"workers were lost {ATTEMPTS} times; {lost} parts of the sum are missing")
    _log.warning("%d parts are computed in this process", lost)

"""What every session has in common: a phase, and an end after which nothing secret is left, however it came."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .errors import ProtocolError
from .primitives.keys import Unprintable
from .session import Phase


class Lifecycle(Unprintable, ABC):
    """Base of all sessions. Calls run inside `_guard`."""

    _phase: Phase

    @property
    def phase(self) -> Phase:
        """Where the session stands."""
        return self._phase

    @abstractmethod
    def _erase(self) -> None:
        """Forgets everything that must not outlive the round."""

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Any failure, whatever it is, ends the round for this party: half-done is never taken for done."""
        with ExitStack() as on_failure:
            on_failure.callback(self._abort)
            try:
                yield
            except ProtocolError as error:
                error.phase = error.phase or self._phase.value
                raise
            on_failure.pop_all()

    def _abort(self) -> None:
        self._erase()
        if self._phase is not Phase.FINISHED:
            self._phase = Phase.ABORTED

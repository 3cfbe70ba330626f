"""File handles that are opened once per process, on first use."""

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class LazyHandle(Generic[T]):
    """Open something on first use, anew in each process; a pickled or forked copy never shares it.

    Args:
        opener: Called with nothing; must itself be picklable (`functools.partial` of a class).
    """

    def __init__(self, opener: Callable[[], T]) -> None:
        """Remember how to open it; nothing is opened yet."""
        self._opener = opener
        self._forget()

    def _forget(self) -> None:
        self._handle: T | None = None
        self._pid = -1
        self._lock = threading.Lock()

    def get(self) -> T:
        """The open handle of this process."""
        if self._pid != os.getpid():
            # A lock that was held while forking stays held in the child for ever: take a new one.
            self._forget()
            self._pid = os.getpid()
        with self._lock:
            if self._handle is None:
                self._handle = self._opener()
            return self._handle

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the opener only."""
        return {"opener": self._opener}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start closed."""
        self.__init__(state["opener"])  # type: ignore[misc]

"""Capture the package's log as a list of messages."""

import logging
from collections.abc import Callable


class _Lines(logging.Handler):
    def __init__(self, each: Callable[[str], None] | None) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.each = each

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if self.each is not None:
            self.each(self.lines[-1])


def capture_log(each: Callable[[str], None] | None = None) -> list[str]:
    """Return a list to which each logged message is appended until the end of the test (see conftest.py).

    Args:
        each: Callback for each message.
    """
    handler = _Lines(each)
    package = logging.getLogger("clipit")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    return handler.lines


def stop_capturing() -> None:
    """Remove the handlers of `capture_log`."""
    package = logging.getLogger("clipit")
    for handler in [handler for handler in package.handlers if isinstance(handler, _Lines)]:
        package.removeHandler(handler)

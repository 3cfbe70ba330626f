"""What the package logs, as a list of lines."""

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
    """A list that grows with each logged message until the end of the test (see conftest.py).

    `each` is called with every message, too.
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

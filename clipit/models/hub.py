"""The Hugging Face hub while a model is loaded: asked once whether it answers, and silent about its retries."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

_PATIENCE_S = 5.0
"""How long the hub may take to answer anything before this process goes on with what is cached."""

_LOUD = ("huggingface_hub", "httpx")


@contextmanager
def hub_access() -> Iterator[None]:
    """Files come from the hub within this block, or from its cache alone when it does not answer.

    The hub's client itself tries every file five times, with pauses, and prints each attempt.
    """
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    before = constants.HF_HUB_OFFLINE
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        constants.HF_HUB_OFFLINE = before or not hub_answers()
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@cache
def hub_answers() -> bool:
    """Whether the hub gives any answer at all; asked once per process."""
    answered = threading.Event()

    def ask() -> None:
        """One request; any status is an answer, and whatever the network stack raises is none."""
        from huggingface_hub import constants, get_session

        with suppress(Exception):
            get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S)
            answered.set()

    # A daemon: a name server that never answers must not keep the program from ending.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return answered.is_set()

"""Tests of progress output (log lines, or a bar in a terminal) and of time estimates."""

import logging
import sys
import time

import pytest

from clipit import progress as module
from clipit.progress import RunCounter, duration, progress


def test_lines_are_logged_without_a_terminal_even_when_progress_stalls(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.05)
    with caplog.at_level(logging.INFO, "clipit"), progress("embedding tiles", 1000, done=100) as advance:
        time.sleep(0.12)
        advance(400, "10 tiles/s")
        time.sleep(0.12)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "embedding tiles: resuming at 100 of 1,000"
    assert lines[1].startswith("embedding tiles: 100 of 1,000, none finished in ")
    assert lines[-1].startswith("embedding tiles: 500 of 1,000, 10 tiles/s, about ") and lines[-1].endswith(" left")
    count = len(caplog.records)
    time.sleep(0.12)
    assert len(caplog.records) == count


def test_remaining_time_is_not_estimated_during_an_unusually_long_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.05)
    with caplog.at_level(logging.INFO, "clipit"), progress("probing", 3) as advance:
        advance()
        time.sleep(0.2)
    assert caplog.records[-1].getMessage() == "probing: 1 of 3, the next has taken 0 seconds so far"


def test_short_tasks_and_secondary_processes_log_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "clipit"):
        with progress("short", 3) as advance:
            advance(3)
        with progress("hidden", 3, shown=False, done=1) as advance:
            advance(2)
    assert not caplog.records


def test_terminal_shows_a_bar_with_elapsed_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with progress("embedding tiles", 10) as advance:
        advance(4, "note")
        time.sleep(0.3)
    printed = capsys.readouterr().err
    assert "embedding tiles" in printed and "4/10" in printed and "0:00:0" in printed and "note" in printed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 seconds"), (40.0, "40 seconds"), (720.0, "12 minutes"), (5400.0, "1.5 hours"), (7200.0, "2 hours"),
        (100_000.0, "28 hours"), (400_000.0, "5 days"),
    ],
)  # fmt: skip
def test_durations_are_rounded_to_readable_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_remaining_time_is_estimated_from_trained_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 61.0, 181.0, 182.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    runs = RunCounter(4)
    assert runs.finish(kept=True) == "1 of 4"
    assert runs.finish() == "2 of 4, about 2 minutes left"
    assert runs.finish() == "3 of 4, about 2 minutes left"
    assert runs.finish() == "4 of 4"

"""Tests of the error message printed when a process crashes while reading an image."""

import io
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
from PIL import Image

from clipit.crash_watch import named_warnings, noted

HEAD = """
    import os, signal, sys, threading, time
    from clipit.errors import user_errors
    from clipit.images.decode import attempt
    def read(name, what):
        return attempt(what, tile_id=name, where=f"tiles.zip!{name}")
    def die():
        os.kill(os.getpid(), signal.SIGSEGV)
"""


def run(tmp_path: Path, body: str) -> "subprocess.CompletedProcess[str]":
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(HEAD) + textwrap.dedent(body))
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, str(script)], env={"PYTHONPATH": root, "PATH": ""}, capture_output=True, text=True, timeout=60
    )


def test_crash_names_the_images_being_read_by_all_threads(tmp_path: Path) -> None:
    completed = run(tmp_path, """
        def wait():
            time.sleep(30)
        with user_errors():
            read("read_before.png", lambda: None)
            threading.Thread(target=read, args=("slow.png", wait), daemon=True).start()
            time.sleep(0.2)
            read("bad\\n\u00e9.jp2", die)
    """)  # fmt: skip
    assert completed.returncode == -signal.SIGSEGV
    assert "error: the process was killed while it was reading these images" in completed.stderr
    assert "where: tiles.zip!bad\\n\\xe9.jp2, tiles.zip!slow.png\n" in completed.stderr
    assert "fix: " in completed.stderr and "read_before" not in completed.stderr


@pytest.mark.parametrize(
    "body",
    [
        "with user_errors():\n    read('a.png', lambda: None)",
        "with user_errors():\n    read('a.png', lambda: None)\n    die()",
        "with user_errors():\n    read('a.png', lambda: 1 / 0)",
        "read('a.png', die)",
    ],
    ids=["normal exit", "crash after reading", "exception", "outside a command"],
)
def test_other_exits_do_not_print_the_crash_message(tmp_path: Path, body: str) -> None:
    assert "while it read" not in run(tmp_path, body).stderr


def test_forked_child_does_not_suppress_the_crash_message(tmp_path: Path) -> None:
    completed = run(tmp_path, """
        with user_errors():
            read("a.png", lambda: None)
            if not os.fork():
                os.close(1), os.close(2)
                time.sleep(20)
                os._exit(0)
            read("b.png", die)
    """)  # fmt: skip
    assert "where: tiles.zip!b.png" in completed.stderr


def test_pillow_warnings_name_each_file_once(tmp_path: Path) -> None:
    stream = io.BytesIO()
    tags = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0"  # the second of two entries is missing
    Image.new("RGB", (16, 16)).save(stream, "JPEG", exif=tags)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(stream.getvalue())
    completed = run(tmp_path, f"""
        import io, warnings
        from pathlib import Path
        from clipit.images.decode import decode
        folder = Path({str(tmp_path)!r})
        with user_errors():
            for _ in range(2):
                decode(folder / "a.jpg")
                decode(folder / "b.jpg")
                read("c.jpg", lambda: decode(io.BytesIO((folder / "a.jpg").read_bytes())))
            warnings.warn("other")
    """)  # fmt: skip
    assert completed.returncode == 0
    warning_lines = [line for line in completed.stdout.splitlines() if "Corrupt EXIF data" in line]
    assert [line.startswith("warning: ") for line in warning_lines] == [True] * 3
    names = [line.partition(": Corrupt")[0].rpartition("/")[2].removeprefix("warning: ") for line in warning_lines]
    assert names == ["a.jpg", "b.jpg", "tiles.zip!c.jpg"]
    assert completed.stderr.count("UserWarning: other") == 1 and "UserWarning: Corrupt" not in completed.stderr


def test_number_of_image_warnings_is_limited(caplog: pytest.LogCaptureFixture) -> None:
    with named_warnings():
        for number in range(50):
            with noted(f"{number}.png"):
                warnings.warn_explicit("bad tag", UserWarning, "site-packages/PIL/TiffImagePlugin.py", 1, "PIL.Tiff")
    assert len(caplog.messages) == 21 and caplog.messages[0] == "0.png: bad tag"
    assert caplog.messages[-1] == "further warnings about images are not shown"

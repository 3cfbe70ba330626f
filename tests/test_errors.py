"""Tests of error messages as users see them."""

import errno
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from clipit.errors import ArtifactError, DataError, counted, counted_of, disk_errors, explain, shortlist, user_errors
from clipit.models.loading import foreign_errors
from clipit.output_files.artifacts import reading

FULL = Path("/dev/full")


def test_message_has_three_parts() -> None:
    assert explain("wrong", where="file, row 3", fix="mend it") == "wrong\n  where: file, row 3\n  fix: mend it"
    assert shortlist(list("abc"), 2) == "a, b and 1 more"


def test_control_characters_are_escaped() -> None:
    message = explain("bad\x1b[2J id\n  second line", where="a\x07b\udcff", fix="mend\r it")
    assert message == "bad\\x1b[2J id\n  second line\n  where: a\\x07b\\udcff\n  fix: mend\\r it"
    assert shortlist(["é \U0001f600", "a\nb"]) == "é \U0001f600, a\\nb"


def test_user_error_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised, user_errors():
        raise DataError("no tiles")
    assert raised.value.code == 2
    assert capsys.readouterr().err == "error: no tiles\n"


def test_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), user_errors():
        raise ZeroDivisionError


def test_interruption_explains_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised, user_errors():
        raise KeyboardInterrupt
    assert raised.value.code == 130
    assert "same command again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (errno.ENOSPC, "free some space or choose"),
        (errno.EDQUOT, "free some space or choose"),
        (errno.EROFS, "choose a different folder"),
        (errno.EEXIST, "delete or rename the file that is in the way"),
        (errno.ENOTDIR, "delete or rename the file that is in the way"),
        (errno.EACCES, "choose a different folder"),
        (errno.ENAMETOOLONG, "shorten the name or choose"),
        (errno.ELOOP, "delete the link that leads to itself, or choose"),
        (errno.ENOLCK, "mount this file system with support for locks, or choose"),
        (errno.ESTALE, "choose a different folder"),
    ],
)
def test_disk_error_names_the_path_and_the_fix(code: int, fix: str) -> None:
    with pytest.raises(ArtifactError, match=rf"/place\n  fix: {fix}"), disk_errors("/elsewhere"):
        raise OSError(code, os.strerror(code), "/place")


def test_other_errors_propagate() -> None:
    with pytest.raises(OSError, match="timed out"), disk_errors("here"):
        raise OSError(errno.ETIMEDOUT, "timed out")
    with pytest.raises(RuntimeError, match="a bug"), disk_errors("here"):
        raise RuntimeError("a bug")


def test_unreadable_folder_raises_a_permission_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", forbidden)
    path = tmp_path / "slide.svs"
    with pytest.raises(ArtifactError, match=r"no permission[\s\S]*slide.svs"), disk_errors(tmp_path):
        path.is_file()


@pytest.mark.skipif(not FULL.is_char_device(), reason="needs /dev/full to simulate a full disk")
@pytest.mark.parametrize("writer", ["numpy", "faiss", "text"])
def test_full_disk_as_reported_by_each_library(writer: str) -> None:
    with pytest.raises(ArtifactError, match="No space left"), disk_errors("the store"):
        if writer == "numpy":
            with FULL.open("wb") as stream:
                np.save(stream, np.zeros(100_000))
        elif writer == "faiss":
            import faiss

            index = faiss.IndexFlatIP(64)
            index.add(np.zeros((9_000, 64), dtype=np.float32))
            faiss.write_index(index, str(FULL))
        else:
            FULL.write_text("x" * 10_000)


def test_full_disk_as_reported_by_safetensors() -> None:
    from safetensors import SafetensorError

    with pytest.raises(ArtifactError, match="No space left"), disk_errors("the checkpoint"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_unreadable_input_does_not_suggest_a_different_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reports.csv"
    path.write_text("text\n")
    monkeypatch.setattr(os, "access", lambda name, mode: str(name) != str(path) or mode != os.R_OK)
    with (
        pytest.raises(ArtifactError, match=r"(?s)no permission.*reports\.csv.*make the file readable"),
        disk_errors("x"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    with pytest.raises(ArtifactError, match="choose a different folder with --output"), disk_errors("x"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))


def run_command(body: str, **environment: str) -> "subprocess.Popen[bytes]":
    code = f"from clipit.errors import user_errors\nwith user_errors():\n    {body}"
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **environment}, **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    "body",
    [
        "for i in range(100_000): print('x' * 100)",
        "print('x')\n    import time; time.sleep(1)\n    print('y')",
        "import logging\n    for i in range(100_000): logging.getLogger('clipit').info('x' * 100)",
        "print('x' * 10, flush=True)\n    import time; time.sleep(1)\n    print('y')\n    raise SystemExit(0)",
    ],
)
def test_closed_pipe_ends_a_command_silently(body: str) -> None:
    with run_command(body) as command:
        assert command.stdout is not None and command.stderr is not None
        command.stdout.close()
        assert command.stderr.read() == b""
        assert command.wait(60) == 141


@pytest.mark.parametrize("arguments", [["--help"], ["completion", "bash"]])
def test_closed_pipe_ends_printing_commands_silently(arguments: list[str]) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "clipit", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None and command.stderr is not None
    command.stdout.close()
    assert (command.stderr.read(), command.wait(60)) == (b"", 141)


def test_closed_stdout_is_not_an_error() -> None:
    code = "from clipit.errors import user_errors\nwith user_errors():\n    print('x')"
    assert subprocess.run(["sh", "-c", f'{sys.executable} -c "$0" >&-', code], check=False).returncode == 0


def test_characters_outside_the_output_encoding_are_escaped() -> None:
    log = r"import logging; logging.getLogger('clipit').info('\u00b5m \u2192 3'); print('\udcff')"
    with run_command(log, PYTHONIOENCODING="latin-1") as command:
        assert command.communicate(timeout=60) == (b"\xb5m \\u2192 3\n\\udcff\n", b"")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("can't start new thread"), "more threads or processes"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "more threads or processes"),
        (OSError(errno.EMFILE, "Too many open files", "x.png"), "open more files"),
    ],
)
def test_system_limits_are_named(error: Exception, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), user_errors():
        raise error
    assert message in capsys.readouterr().err


def test_mismatched_torch_and_torchvision_are_named_even_behind_transformers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"), user_errors():
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module 'CLIPImageProcessor'.") from error
    printed = capsys.readouterr().err
    assert (
        "torch and torchvision do not match" in printed
        and "--index-url https://download.pytorch.org/whl/cpu" in printed
    )
    with pytest.raises(ModuleNotFoundError), user_errors():
        raise ModuleNotFoundError("No module named 'absent'")


@pytest.mark.parametrize("writer", ["faiss", "safetensors", "numpy", "parquet"])
def test_file_size_limit_as_reported_by_each_library(writer: str, tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    values = np.zeros((50_000, 16), dtype=np.float32)
    with pytest.raises(ArtifactError, match=r"(?s)(File too large|limit on file sizes)"), disk_errors("the store"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            write_with(writer, values, tmp_path / "file")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_with(writer: str, values: np.ndarray, path: Path) -> None:
    if writer == "faiss":
        import faiss

        index = faiss.IndexFlatIP(values.shape[1])
        index.add(values)
        faiss.write_index(index, str(path))
    elif writer == "safetensors":
        from safetensors.numpy import save_file

        save_file({"values": values}, path)
    elif writer == "numpy":
        np.save(path, values)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"values": np.random.default_rng(0).random(50_000)}), path)


def test_exceeded_quota_as_reported_by_faiss_and_safetensors() -> None:
    reason = os.strerror(errno.EDQUOT)
    for text in (f"write error in /x: 9 != 10 ({reason})", f"I/O error: {reason} (os error {errno.EDQUOT})"):
        with pytest.raises(ArtifactError, match=f"cannot write: {reason}"), disk_errors("the store"):
            raise RuntimeError(text)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        ImportError("libopenblas.so: failed to map segment from shared object"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_out_of_memory_errors_are_recognised(
    error: Exception, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for wrapped in (nullcontext(), foreign_errors("some-model"), reading(tmp_path / "pairs.parquet")):
        with pytest.raises(SystemExit) as raised, user_errors(), wrapped:
            raise error
        assert raised.value.code == 2
        message = capsys.readouterr().err
        assert (
            message.startswith("error: not enough memory") and "vlm.batch_size" in message and "delete" not in message
        )
        assert ("noexec" in message) == ("map segment" in str(error))


@pytest.mark.parametrize(
    "message",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:59082",
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
        "sendBytes failed on SocketImpl(fd=6): Broken pipe",
    ],
)
def test_lost_process_is_recognised(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), user_errors():
        raise torch.distributed.DistNetworkError(message)
    assert capsys.readouterr().err.startswith("error: another process of this command has exited")


def test_counted_nouns_and_verbs_agree_in_number() -> None:
    assert [counted(n, "file") for n in (0, 1, 2, 1500)] == ["0 files", "1 file", "2 files", "1,500 files"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
    assert [counted(n, "file is", "files are") for n in (1, 2)] == ["1 file is", "2 files are"]
    counts = [counted_of(n, total, "file is", "files are") for n, total in ((1, 1), (1, 3), (2, 1500))]
    assert counts == ["1 of 1 file is", "1 of 3 files is", "2 of 1,500 files are"]

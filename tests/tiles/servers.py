"""A small file server that breaks off, goes on, or knows no ranges."""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Server(http.server.BaseHTTPRequestHandler):
    """Serves files of a folder, with ranges unless told otherwise."""

    def __init__(self, state: "State", *rest: object) -> None:
        self.state = state
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        file = self.state.folder / self.path.lstrip("/")
        asked = self.headers.get("Range")
        self.state.asked.append(asked)
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.state.ranges else 0  # type: ignore[index]
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + self.state.breaks_after])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class State:
    """What the server should do, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str | None] = []
        self.ranges = True
        self.breaks_after = 10**9
        self.url = ""


@contextmanager
def serve(folder: Path) -> Iterator[State]:
    """Serve a folder until the block ends."""
    state = State(folder)
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, state))
    state.url = f"http://127.0.0.1:{running.server_address[1]}"
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        running.shutdown()
        running.server_close()
        thread.join()

"""A local file server that can drop connections or ignore range requests."""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Server(http.server.BaseHTTPRequestHandler):
    """Serve the files of a folder, with range requests unless the state disables them."""

    def __init__(self, state: "State", *rest: object) -> None:
        self.state = state
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        file = self.state.folder / self.path.lstrip("/")
        requested = self.headers.get("Range")
        self.state.requested.append(requested)
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        first = re.fullmatch(r"bytes=(\d+)-", requested or "") if self.state.ranges else None
        start = int(first[1]) if first else 0
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
        """Suppress the log."""


class State:
    """Behaviour of the server and the ranges requested from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requested: list[str | None] = []
        self.ranges = True
        self.breaks_after = 10**9
        self.url = ""


@contextmanager
def serve(folder: Path) -> Iterator[State]:
    """Serve a folder for the duration of the context."""
    state = State(folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, state))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

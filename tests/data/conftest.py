"""Data sets in `LIGHTNING_META_DATA`, a cache that is not the user's, and a server to download from."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    folder = tmp_path / "fresh cache"
    monkeypatch.setenv("LIGHTNING_META_CACHE", str(folder))
    return folder


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """An empty `LIGHTNING_META_DATA` and an empty cache for one test."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("LIGHTNING_META_DATA", str(folder))
    return folder


class Answer(NamedTuple):
    """The answer of the server to one request."""

    body: bytes
    status: int = 200
    cut: int = 0  # how many bytes at the end are promised and not sent


class Server:
    """Serves the answers in the order they were added, and the last one ever after."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[str] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._http.server_port}/"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def add(self, body: bytes, status: int = 200, cut: int = 0) -> None:
        self.answers.append(Answer(body, status, cut))

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, owner: Server, *args: object) -> None:
        self._owner = owner
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        owner = self._owner
        answer = owner.answers[min(len(owner.requests), len(owner.answers) - 1)]
        owner.requests.append(self.path)
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[: len(answer.body) - answer.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on localhost; retries do not wait."""
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    running = Server()
    yield running
    running.close()
    with warnings.catch_warnings():  # pooch leaves the connection of a failed attempt to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()

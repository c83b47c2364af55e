"""One request to OpenAI's /v1/completions, sent again where the network or the server has a bad moment."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from qtarget.errors import QTargetError
from qtarget.evaluate.server_settings import KEY

AGAIN = (408, 425, 429, 500, 502, 503, 504)
LOADING = 503
"""What llama.cpp's server answers while it loads a model."""
LONGEST_PAUSE = 30.0


class LostServerError(QTargetError):
    """The server is gone, or takes too long, for good. status: of its last answer; None: there was none."""

    status: int | None = None


@dataclass(frozen=True)
class Client:
    """Sends JSON to one server. No redirect is followed, so that the key reaches nobody else.

    url: ends where /completions begins. timeout: seconds a request may take; retries: of each. is_alive: raises
    QTargetError where the server's own process has ended; asked after each failure.
    """

    url: str
    timeout: float
    retries: int
    is_alive: Callable[[], None] = lambda: None
    pause: float = 1.0
    stopped: threading.Event = field(default_factory=threading.Event)
    connections: set[HTTPConnection] = field(default_factory=set)

    def stop(self) -> None:
        """Requests of other threads fail now and aren't sent again."""
        self.stopped.set()
        for connection in list(self.connections):
            with suppress(OSError):
                if connection.sock:
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def get(self, path: str) -> tuple[int, Any]:
        """(status, what was answered), tried once."""
        return self._sent("GET", path, None)

    def post(self, path: str, fields: Mapping[str, Any]) -> Any:
        """What a request was answered. Raises QTargetError where it was refused, LostServerError where nothing came."""
        status = None
        for attempt in range(self.retries + 1):
            try:
                status, answer = self._sent("POST", path, fields)
            except (OSError, HTTPException) as error:  # timeouts are OSErrors
                status, reason = None, f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    return answer
                reason = f"status {status}: {_in_short(answer)}"
                if status not in AGAIN:
                    raise QTargetError(f"the server at {self.url} refused a request with {reason}{_hint(answer)}")
            self.is_alive()
            if attempt < self.retries:
                self.stopped.wait(min(self.pause * 2**attempt, LONGEST_PAUSE))
            if self.stopped.is_set():
                break
        tried = f"{self.retries + 1} time{'s' * (self.retries > 0)}"
        lost = LostServerError(
            f"the server at {self.url} gave no answer, asked {tried} with {self.timeout:g} s each, at last {reason}: "
            "see its log; eval.server.timeout, eval.server.retries and eval.server.in_flight say how it is asked"
        )
        lost.status = status
        raise lost

    def _sent(self, method: str, path: str, fields: Mapping[str, Any] | None) -> tuple[int, Any]:
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=self.timeout)
        deadline = time.monotonic() + self.timeout
        self.connections.add(connection)
        try:
            body = None if fields is None else json.dumps(fields).encode()
            connection.request(method, f"{parts.path.rstrip('/')}{path}", body, _headers())
            response = connection.getresponse()
            text = _read_until(response, deadline)
        finally:
            self.connections.discard(connection)
            connection.close()
        return response.status, _parsed(text)


def _read_until(response: Any, deadline: float) -> str:
    """The body; a server that sends a byte now and then has the same time as any other."""
    parts = []
    while part := response.read1(1 << 16):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError("the answer is still coming in")
    return b"".join(parts).decode("utf-8", "replace")


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY)
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _in_short(answer: Any) -> str:
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return f"{text[:300]}…" if len(text) > 300 else text


def _hint(answer: Any) -> str:
    text = _in_short(answer).lower()
    if "prompt" in text and "string" in text:
        return ". It takes no token ids: set eval.server.prompts=text"
    if "api key" in text or "unauthorized" in text:
        return f". A key is read from the environment variable {KEY}"
    return ""

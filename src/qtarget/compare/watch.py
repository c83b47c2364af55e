"""`qtarget watch`: the page of a comparison while its runs go on, served on this machine alone."""

from __future__ import annotations

import hashlib
import html
import threading
import time
import webbrowser
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from qtarget.compare.command import CompareOptions, compared
from qtarget.compare.formats import terminal
from qtarget.compare.report import render
from qtarget.errors import QTargetError
from qtarget.record.runs import STALE, files_below, read_runs, unfinished

HOST = "127.0.0.1"
WATCHED = ("result.json", "metrics.jsonl", "sweep.json")
"""The files of a run and of a sweep whose growth makes the page another one."""
SCRIPT = Path(__file__).with_name("watch.js")
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass
class LivePage:
    """The page of the runs below `paths`, made again when their files have changed. every: seconds between looks."""

    paths: Sequence[Path]
    options: CompareOptions = field(default_factory=CompareOptions)
    every: float = 2.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _version: str = ""
    _text: str = ""

    def version(self) -> str:
        """A hash of the names and sizes of the files read, and of which of them have been quiet for long.

        A logged line changes a size; a run at work writes its result.json every minute.
        """
        files = sorted(file for path in self.paths for file in files_below(path, WATCHED))
        state = [(str(file), *_size_and_silence(file)) for file in files]
        return hashlib.sha256(repr(state).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def text(self) -> str:
        """The page; while there is none, what it waits for."""
        with self._lock:
            version = self.version()
            if version != self._version:
                self._text, self._version = self._page(version), version
            return self._text

    def _page(self, version: str) -> str:
        try:
            page = render(*compared(self.paths, self.options))
        except QTargetError as error:
            page = (
                f"<!doctype html><meta charset=utf-8><title>qtarget watch</title><pre>{html.escape(str(error))}</pre>"
            )
        script = (
            f"<script>const watched = {{version: '{version}', every: {1000 * self.every:g}}};\n{_script()}</script>"
        )
        return page.replace("</body>", "") + script


def _script() -> str:
    return SCRIPT.read_text(encoding="utf-8")


def _size_and_silence(file: Path) -> tuple[int, bool]:
    try:
        status = file.stat()
    except OSError:  # replaced at this moment
        return -1, False
    return status.st_size, time.time() - status.st_mtime > STALE.total_seconds()


class Handler(BaseHTTPRequestHandler):
    """GET / and GET /version, for this machine's own browser."""

    def __init__(self, page: LivePage, *arguments: object) -> None:
        self.page = page
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        answers: dict[str, tuple[Callable[[], str], str]] = {
            "/": (self.page.text, "text/html"),
            "/version": (self.page.version, "text/plain"),
        }
        if not self._asked_by_name():
            self.send_error(HTTPStatus.FORBIDDEN, "Host is not this machine")
        elif self.path not in answers:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            make, kind = answers[self.path]
            self._send(make().encode("utf-8"), kind)

    def _asked_by_name(self) -> bool:
        """Whether the address is this machine's own: a page elsewhere may point a name of its own at 127.0.0.1."""
        address = self.server.server_address
        assert isinstance(address, tuple)
        port = address[1]
        return self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            **SECURITY,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: a line each two seconds says nothing."""


def serve(page: LivePage, port: int = 0) -> ThreadingHTTPServer:
    """A server of the page on 127.0.0.1. port: 0 takes a free one. Raises QTargetError where it is taken."""
    try:
        return ThreadingHTTPServer((HOST, port), partial(Handler, page))
    except OSError as error:
        raise QTargetError(
            f"--port {port}: {error.strerror}; choose another, or leave it out for a free one"
        ) from error


def watch(
    paths: Sequence[str], options: CompareOptions, *, port: int = 0, every: float = 2.0, browser: bool = True
) -> int:
    """Serve the page until Ctrl-C, with a line in the terminal whenever the count of runs changes."""
    folders = [Path(path) for path in paths]
    page = LivePage(folders, options, every)
    server = serve(page, port)
    address = f"http://{HOST}:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    report = partial(terminal(stderr=False).print, markup=False, highlight=False, soft_wrap=True)
    report(f"watching {' '.join(map(str, folders))} at {address} (Ctrl-C ends it)")
    if browser:
        webbrowser.open(address)
    try:
        _report_counts(page, report)
    except KeyboardInterrupt:
        return 0
    finally:
        server.shutdown()
        server.server_close()
    return 0


def _report_counts(page: LivePage, report: Callable[[str], None]) -> None:
    last_version, last_line = "", ""
    while True:
        version = page.version()
        line = last_line if version == last_version else _counts(page.paths)
        if line != last_line:
            report(line)
        last_version, last_line = version, line
        time.sleep(page.every)


def _counts(folders: Sequence[Path]) -> str:
    try:
        runs = read_runs(folders)
    except QTargetError:
        missing = [str(folder) for folder in folders if not folder.is_dir()]
        return "no runs yet" + f": {', '.join(missing)} isn't there yet" * bool(missing)
    others = Counter(run.status for run in unfinished(runs))
    counts = {"finished": len(runs) - others.total(), **others}
    return ", ".join(f"{count} {status}" for status, count in counts.items())

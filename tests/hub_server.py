"""A hub in memory for huggingface_hub's own client (2.4): repositories, their files, and one commit of small files.

It speaks what `create_repo`, `list_repo_files` and `create_commit` ask: no large files, no branches.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OID = "0" * 40


@dataclass
class Hub:
    """files: by repository, path → content. private: by repository. tokens: what requests have carried."""

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    refuses: bool = False

    def answer(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        match = re.match(r"/api/models/([^/]+/[^/]+)/(tree|preupload|commit)/main", path)
        assert match, f"{path} is not known here"
        return getattr(self, f"_{match[2]}")(match[1], body)

    def _create(self, wanted: dict[str, Any]) -> dict[str, Any]:
        name = f"{wanted['organization']}/{wanted['name']}"
        self.files.setdefault(name, {".gitattributes": b""})
        self.private[name] = wanted.get("private", wanted.get("visibility") == "private")
        return {"url": f"{self.address}/{name}"}

    def _tree(self, name: str, body: bytes) -> list[dict[str, Any]]:
        held = self.files[name].items()
        return [{"type": "file", "path": path, "size": len(data), "oid": OID} for path, data in held]

    def _preupload(self, name: str, body: bytes) -> dict[str, Any]:
        paths = [file["path"] for file in json.loads(body)["files"]]
        return {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}

    def _commit(self, name: str, body: bytes) -> dict[str, Any]:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return {"commitUrl": f"{self.address}/{name}/commit/{OID}", "commitOid": OID}


REGISTRY = "/api/agent-harnesses"
"""Which huggingface_hub asks for once a day, without a token, whatever is uploaded."""


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.path == REGISTRY:
                self.send_error(404)
                return
            hub.tokens.add(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told = {"error": f"no: {self.headers['Authorization']}"} if hub.refuses else hub.answer(self.path, body)
            data = json.dumps(told).encode()
            self.send_response(403 if hub.refuses else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST  # noqa: N815  (http.server's own name)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()

"""A server with OpenAI's /v1/completions for what goes wrong.

In this process, or `python completions_server.py PORT MODEL MODE`.

An answer is made of the prompt's length and the seed; a token is a character. A mode is one way of going wrong.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Completions:
    """What was asked, and how it is answered. mode: "" where nothing goes wrong."""

    model: str
    mode: str = ""
    address: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            self.bodies.append(body)
            asked = len(self.bodies)
        if self.mode == "dies" and asked > 1:
            print("CUDA out of memory", flush=True)
            os._exit(3)
        if self.mode == "hangs" or (self.mode == "hangs, and refuses" and asked < 3):
            time.sleep(2)
        if self.mode == "hangs, and refuses":
            return 400, {"error": "no"}
        if self.mode == "busy" or (self.mode == "busy twice" and asked <= 2):
            return 503, {"error": "no worker is free"}
        if self.mode == "takes text" and not isinstance(body["prompt"], str):
            return 400, {"detail": "prompt must be a string."}
        return 200, self.completion(body)

    def completion(self, body: dict[str, Any]) -> Any:
        seed = 0 if self.mode == "greedy" else body["seed"]
        text = f"{len(body['prompt'])} {seed}"[: body["max_tokens"]]
        reason = "length" if len(text) == body["max_tokens"] else "stop"
        choice = {"index": 0, "text": text, "finish_reason": reason}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(text) + (reason == "stop")}
        answer = {"model": self.model, "choices": [choice], "usage": usage}
        if self.mode == "cuts":
            choice |= {"finish_reason": "length", "text": "12"}
            usage |= {"completion_tokens": 2}
        if self.mode == "halves a letter":
            choice |= {"text": "12\ud83d"}
        if self.mode == "filters":
            choice |= {"finish_reason": "content_filter"}
        if self.mode == "counts nothing":
            del answer["usage"]
        if self.mode == "marks prompts":
            usage["prompt_tokens"] += 1
        return answer


def handler(served: Completions) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"data": []})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.keys.add(self.headers["Authorization"])
            with served.lock:
                served.at_once += 1
                served.most_at_once = max(served.most_at_once, served.at_once)
            try:
                time.sleep(0.01)
                status, answer = served.answer(body)
            finally:  # before the reply, upon which the next one may come
                with served.lock:
                    served.at_once -= 1
            self.reply(status, answer)

        def reply(self, status: int, answer: Any) -> None:
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            with suppress(OSError):  # whoever asked has given up
                self.wfile.write(text)

        def log_message(self, *given: Any) -> None:
            """Nothing."""

    return Handler


@contextmanager
def serving(model: str = "judged", mode: str = "") -> Iterator[Completions]:
    served = Completions(model, mode)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(served))
    served.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    port, model, mode = sys.argv[1:]
    print("loading", model, "key" if os.environ.get("QTARGET_SERVER_KEY") else "no key", flush=True)
    if mode == "ends at once":
        sys.exit("no such model")
    if mode == "never listens":
        time.sleep(60)
    ThreadingHTTPServer(("127.0.0.1", int(port)), handler(Completions(model, mode))).serve_forever()

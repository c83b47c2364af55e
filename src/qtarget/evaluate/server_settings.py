"""eval.server: a server that answers prompts in this process's place."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from qtarget.errors import QTargetError
from qtarget.settings import Choice, Node, Nullable, Number, Part, Text, Whole, setting

KEY = "QTARGET_SERVER_KEY"
"""The environment variable with the key that requests carry. It stands in no configuration and no log."""
OURS = ("model", "prompt", "max_tokens", "temperature", "top_p", "seed", "n", "stream", "echo", "logprobs")
"""Fields of a request that no `extra` sets."""


@dataclass(frozen=True)
class ServerConfig(Node):
    """Where answers come from under eval.engine=server: any server with OpenAI's /v1/completions."""

    NODE_KEY: ClassVar[str] = "eval.server"

    command: str | None = setting(
        None, Nullable(Text("a command")), "that starts a server; {checkpoint} and {port} in it are filled in"
    )
    url: str | None = setting(
        None, Nullable(Text("an address")), "of a server that runs, such as http://localhost:8000/v1"
    )
    model: str | None = setting(
        None, Nullable(Text("a name")), "what the server calls the checkpoint; null: the checkpoint's path"
    )
    prompts: str = setting(
        "ids", Choice(("ids", "text")), "prompts as token ids, or as the rendered text where a server takes no ids"
    )
    extra: Mapping[str, Any] = setting({}, Part("{FIELD: VALUE}"), "further fields of each request")
    in_flight: int = setting(64, Whole(1), "requests at a time")
    retries: int = setting(4, Whole(0), "of a request that met a lost connection, a timeout, 429 or 5xx")
    timeout: float = setting(600.0, Number(0.001), "seconds that a request may take")
    start: float = setting(900.0, Number(0.001), "seconds until a started server answers")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.command and "{port}" not in self.command:
            raise QTargetError(
                f"eval.server.command={self.command!r} has no {{port}}: a free one is filled in, as in "
                "vllm serve {checkpoint} --port {port}"
            )
        if self.command:
            _check_words(self.command)
        if self.url is not None:
            _check_url(self.url)
        if not isinstance(self.extra, Mapping) or set(self.extra) & set(OURS):
            raise QTargetError(
                f"eval.server.extra={dict(self.extra) if isinstance(self.extra, Mapping) else self.extra} must hold "
                f"further fields of a request, none of {', '.join(OURS)}: those follow from eval"
            )
        json.dumps(dict(self.extra))

    def check_reachable(self) -> None:
        """Raise QTargetError unless exactly one of command and url says where the server is."""
        if (self.command is None) == (self.url is None):
            raise QTargetError(
                f"eval.engine=server needs one of eval.server.command and eval.server.url, got {self.command!r} and "
                f"{self.url!r}: eval.server.command='vllm serve {{checkpoint}} --port {{port}}' starts one a checkpoint"
            )


def _check_words(command: str) -> None:
    try:
        shlex.split(command)
    except ValueError as error:
        raise QTargetError(
            f"eval.server.command={command!r} can't be split into words as a shell does: {error}"
        ) from None


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise QTargetError(f"eval.server.url={url!r} must be an address such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise QTargetError(
            f"eval.server.url must hold no user, password or query, since it stands in the record: set {KEY} in the "
            "environment"
        )

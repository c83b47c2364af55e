"""Answers that a server writes: each a request of its own, with the prompt as we render it and a seed of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtarget.errors import QTargetError
from qtarget.evaluate.completions import LOADING, Client, LostServerError
from qtarget.evaluate.requests import GeneratedAnswer, Request
from qtarget.evaluate.sampling import Sampling, seed_of
from qtarget.evaluate.server_process import started
from qtarget.evaluate.server_settings import ServerConfig


@dataclass(frozen=True)
class ServedPrompt:
    """A prompt as token ids, and as the text that they are of."""

    ids: Sequence[int]
    text: str


@dataclass(frozen=True)
class Served:
    """A server that answers for one model. name: what it calls the model."""

    config: ServerConfig
    client: Client
    name: str
    sampling: Sampling

    def answers(
        self,
        prompts: Sequence[ServedPrompt],
        new_tokens: int,
        watch: Callable[[list[Any]], Iterable[Any]] = iter,
    ) -> list[list[GeneratedAnswer]]:
        """`sampling.samples` to each prompt, in the order of the prompts; eval.server.in_flight requests at a time.

        Raises the QTargetError of the first request that fails for good; the others are given up.
        """
        requests = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(self.sampling.samples)]
        progress, answers = iter(watch(list(requests))), dict[Request, GeneratedAnswer]()
        with ThreadPoolExecutor(self.config.in_flight) as pool:
            sent = {
                pool.submit(self.answer, prompts[request[0]], request[1], new_tokens): request for request in requests
            }
            try:
                for done in as_completed(sent):
                    answers[sent[done]] = done.result()
                    next(progress, None)
            except BaseException:
                self.client.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        next(progress, None)
        return [[answers[prompt, sample] for sample in range(self.sampling.samples)] for prompt in range(len(prompts))]

    def answer(self, prompt: ServedPrompt, sample: int, new_tokens: int) -> GeneratedAnswer:
        """One of them. Raises QTargetError where it isn't what was asked for."""
        return self._checked(
            self.client.post("/completions", self.fields(prompt, sample, new_tokens)), prompt, new_tokens
        )

    def fields(self, prompt: ServedPrompt, sample: int, new_tokens: int) -> dict[str, Any]:
        """Seeds are those of the local engine cut to 31 bits, which is what servers have in common."""
        return {
            **self.config.extra,
            "model": self.name,
            "prompt": list(prompt.ids) if self.config.prompts == "ids" else prompt.text,
            "max_tokens": new_tokens,
            "temperature": float(self.sampling.temperature),
            "top_p": float(self.sampling.top_p),
            "seed": seed_of(self.sampling.seed, prompt.ids, sample) >> 32,
        }

    def _checked(self, answer: Any, prompt: ServedPrompt, new_tokens: int) -> GeneratedAnswer:
        try:
            (choice,), usage, model = answer["choices"], answer["usage"], str(answer["model"])
            text, reason = _whole_letters(str(choice["text"])), choice["finish_reason"]
            read, written = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise QTargetError(
                f"the server at {self.client.url} answers without what is needed ({error!r}): one choice with text "
                "and finish_reason, the model's name, and usage with prompt_tokens and completion_tokens, got "
                f"{str(answer)[:300]}"
            ) from error
        self._check_model(model)
        self._check_length(reason, written, new_tokens)
        if read != len(prompt.ids):
            raise QTargetError(
                f"the server at {self.client.url} read {read} tokens of a prompt that has {len(prompt.ids)}: "
                "it has another tokenizer, or adds marks of its own to text; eval.server.prompts=ids sends tokens"
            )
        ended = reason == "stop"
        return GeneratedAnswer([], ended, text, max(0, written - ended))

    def _check_model(self, model: str) -> None:
        if model != self.name and not model.startswith(f"{self.name}@"):  # transformers serve names the revision
            raise QTargetError(
                f"the server at {self.client.url} answers as {model!r}, and {self.name!r} is to be judged: start it "
                f"with that checkpoint, or set eval.server.model={model} if that is what it calls the same weights"
            )

    def _check_length(self, reason: Any, written: int, new_tokens: int) -> None:
        if reason not in ("stop", "length"):
            raise QTargetError(
                f"the server at {self.client.url} ended an answer for the reason {reason!r}, and 'stop' or 'length' "
                "says whether it came to its end"
            )
        if reason == "length" and written < new_tokens:
            raise QTargetError(
                f"the server at {self.client.url} cut an answer at {written} tokens, and eval.new_tokens allows "
                f"{new_tokens}: start it with a longer context, or lower eval.new_tokens"
            )

    def check_draws(self, prompt: ServedPrompt, new_tokens: int) -> bool:
        """Whether the same seed gives the same answer twice. Raises QTargetError where seeds change nothing.

        At a temperature of 2, of at most 16 tokens: transformers serve, which takes a checkpoint's own do_sample,
        answers greedily whatever the temperature.
        """
        hot = Served(self.config, self.client, self.name, Sampling(2, 2.0, 1.0, self.sampling.seed))
        length = min(16, new_tokens)
        texts = [hot.answer(prompt, sample, length).text for sample in (0, 1, 2, 3, 0)]
        if len(set(texts)) == 1:
            raise QTargetError(
                f"the server at {self.client.url} gives the same answer whatever the seed, so it takes the likeliest "
                "tokens: let it sample (eval.server.extra may hold the field that it wants), or set eval.temperature=0"
            )
        return texts[0] == texts[-1]


@dataclass(frozen=True)
class Server:
    """What eval.engine=server is answered by. checkpoint: the model's folder or id; log: of a server that is started.

    notify: what is called with remarks for the user.
    """

    config: ServerConfig
    checkpoint: str
    log: Path
    notify: Callable[[str], None] = print

    @contextmanager
    def answering(self, sampling: Sampling, probe: ServedPrompt) -> Iterator[Served]:
        """The server, started where it is to be, and checked with one prompt."""
        with ExitStack() as stack:
            is_alive: Callable[[], None] = _nothing
            deadline = time.monotonic() + (self.config.start if self.config.url is None else 0.0)
            url = self.config.url
            if url is None:
                server = stack.enter_context(started(self.config, self.checkpoint, self.log))
                url, is_alive = server.url, server.check_alive
            client = Client(url.rstrip("/"), self.config.timeout, self.config.retries, is_alive)
            served = Served(self.config, client, self.config.model or self.checkpoint, sampling)
            self._check_once_loaded(served, probe, deadline)
            yield served

    def _check_once_loaded(self, served: Served, probe: ServedPrompt, deadline: float) -> None:
        """A server that was started may answer before its model is there. Raises the last error at the deadline."""
        while True:
            try:
                return self._check(served, probe)
            except LostServerError as error:
                if error.status != LOADING or time.monotonic() > deadline:
                    raise
            time.sleep(served.client.pause)

    def _check(self, served: Served, probe: ServedPrompt) -> None:
        if not served.sampling.temperature:
            served.answer(probe, 0, 1)
        elif not served.check_draws(probe, 16):
            self.notify(
                "the server gives other answers when asked again with the same seed: its numbers will vary a bit"
            )


def _whole_letters(text: str) -> str:
    """Without halves of surrogate pairs, as where a limit cuts an emoji: no file could hold them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _nothing() -> None:
    """A server that others have started: only its connection tells whether it is there."""

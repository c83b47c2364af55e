"""What is to be answered, and the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qtarget.evaluate.sampling import Sampling, seed_of

Prompts = Sequence[Sequence[int]]
Request = tuple[int, int]
"""(which prompt, which of its samples)."""


@dataclass(frozen=True)
class GeneratedAnswer:
    """An answer's tokens up to its end, and whether it came to one: False where the limit cut it off.

    text, count: of an answer that a server has written, which sends text; its `ids` are empty.
    """

    ids: list[int]
    ended: bool
    text: str | None = None
    count: int = 0

    @property
    def tokens(self) -> int:
        return len(self.ids) if self.text is None else self.count


Answers = dict[Request, GeneratedAnswer]


@dataclass(frozen=True)
class AnswerTask:
    """Prompts as token ids, and how each is answered. ends: tokens that end an answer; pad: fills a batch's left;
    new_tokens: of the longest answer; batch: answers written at a time.
    """

    prompts: Prompts
    ends: tuple[int, ...]
    pad: int
    new_tokens: int
    batch: int
    sampling: Sampling

    @property
    def requests(self) -> list[Request]:
        """The longest prompts first; the samples of a prompt stand together."""
        order = sorted(range(len(self.prompts)), key=lambda index: -len(self.prompts[index]))
        return [(prompt, sample) for prompt in order for sample in range(self.sampling.samples)]

    def most_tokens(self, request: Request) -> int:
        """Of the prompt and its longest answer."""
        return len(self.prompts[request[0]]) + self.new_tokens

    def generator(self, request: Request, device: torch.device) -> torch.Generator:
        """Of the draws of one answer."""
        prompt, sample = request
        return torch.Generator(device).manual_seed(seed_of(self.sampling.seed, self.prompts[prompt], sample))


def left_padded(prompts: Prompts, pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask) [B, T] int64, each prompt at the right."""
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return input_ids.to(device), mask.to(device)

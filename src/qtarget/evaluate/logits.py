"""What is made of a model's scores before the next token is taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from qtarget.evaluate.sampling import Sampling


class GumbelNoise(LogitsProcessor):
    """Makes the likeliest token a drawn one: argmax_v (z_v + G_v) has the distribution softmax(z).

    G_v = −log(−log U_v) with U_v uniform, from a generator for each row. (Of transformers' own sampling all rows share
    one generator, and an answer changes with its neighbours.)
    """

    def __init__(self, generators: Sequence[torch.Generator], vocab_size: int) -> None:
        self.generators = generators
        self.vocab_size = vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        width = min(self.vocab_size, scores.shape[1])
        uniform = scores.new_empty(len(scores), width)
        for row, generator in zip(uniform, self.generators, strict=True):
            row.uniform_(generator=generator)
        noisy = scores.clone()
        noisy[:, :width] -= uniform.log_().neg_().log_()
        return noisy


class TrueVocabulary(LogitsProcessor):
    """Rows from `vocab_size` on pad the output layer and are no tokens."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.vocab_size >= scores.shape[1]:
            return scores
        masked = scores.clone()
        masked[:, self.vocab_size :] = -torch.inf
        return masked


def processors(sampling: Sampling, vocab_size: int, generators: Sequence[torch.Generator]) -> LogitsProcessorList:
    """What makes of scores [n, V] those whose largest entry is the next token. generators: one a row, read in turn."""
    chain = LogitsProcessorList([TrueVocabulary(vocab_size)])
    if sampling.temperature:
        chain.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            chain.append(TopPLogitsWarper(float(sampling.top_p)))
        chain.append(GumbelNoise(generators, vocab_size))
    return chain

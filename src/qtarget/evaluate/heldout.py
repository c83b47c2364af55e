"""Everything that is measured on held-out data, by one piece of code during and after training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from qtarget.data.batch import Batch, Collate
from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration, Example
from qtarget.evaluate.calibration import Bin, Reliability, retention_metrics, token_metrics
from qtarget.evaluate.generate import way_of_writing
from qtarget.evaluate.prompting import answer_problems, check_thoughts
from qtarget.evaluate.row_losses import RowLoss, RowText, described_rows, row_metrics
from qtarget.evaluate.samples import HELDOUT, Sample, answer_metrics
from qtarget.evaluate.sampling import GREEDY, Sampling
from qtarget.evaluate.served import Served, ServedPrompt, Server
from qtarget.evaluate.spreading import Ranks, all_ranks
from qtarget.model.frozen import Frozen
from qtarget.model.policy import Policy, keeping_casts
from qtarget.model.rotation import alike
from qtarget.parallel import is_rank_zero

SPARE_TOKENS = 8


@dataclass(frozen=True)
class Evaluation:
    """What came of it: metrics by name, the answers given, the bins of the reliability curve, each held-out row's nll.

    A name with a slash says where its number comes from: retention/…, or a benchmark's name. One without is of the
    held-out rows.
    """

    metrics: Mapping[str, float]
    samples: Sequence[Sample]
    calibration: Sequence[Bin]
    row_losses: Sequence[RowLoss] = ()

    def named(self, prefix: str) -> dict[str, float]:
        """The metrics, those of the held-out rows as prefix/NAME."""
        return {name if "/" in name else f"{prefix}/{name}": value for name, value in self.metrics.items()}


@dataclass(frozen=True)
class How:
    """The ranks that an evaluation is spread over, and what shows how far it is."""

    ranks: Ranks
    watch: Callable[..., Any]

    def of(self, title: str) -> dict[str, Any]:
        """The arguments of one part of it."""
        return {"ranks": self.ranks, "watch": partial(self.watch, title=title)}


@dataclass(frozen=True)
class Evaluator:
    """Measures a policy on held-out demonstrations, on benchmarks, and on text outside the task.

    rows, examples: the held-out demonstrations as text and as tokens. row_of_example: for each example the index of its
    row; None: example i is of row i. test: the indices of the rows that closing numbers are of; None: all.
    benchmarks: name → problems of another kind. retention: text outside the task; retention_prior: the prior over it.
    autocast: the precision of training, so that the policy is judged as it was trained.
    new_tokens: the longest answer, in tokens; None: a few more than the longest demonstration among the held-out rows
    and the benchmark's own. server: answers in the policy's place.
    """

    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Demonstration]
    examples: Sequence[Example]
    prior: Frozen | None
    autocast: Callable[[], AbstractContextManager[Any]]
    new_tokens: int | None = None
    batch_size: int = 64
    sampling: Sampling = GREEDY
    benchmarks: Mapping[str, Sequence[Demonstration]] = field(default_factory=dict)
    retention: Sequence[Example] = ()
    retention_prior: Frozen | None = None
    test: Sequence[int] | None = None
    row_of_example: Sequence[int] | None = None
    server: Server | None = None

    def __call__(self, policy: Policy, limit: int | None = None, *, closing: bool = True) -> Evaluation:
        """limit: only the first so many held-out rows, in place of those of `test`. closing=False: without benchmarks,
        a look during training. Every rank gets the whole evaluation, of which it has done its share. Collective.
        """
        was_training = policy.training
        policy.eval()
        try:
            with torch.no_grad(), self.autocast(), keeping_casts(policy), all_ranks() as ranks:
                return self._evaluated(policy, limit, How(ranks, partial(_with_progress, hidden=not closing)), closing)
        finally:
            policy.train(was_training)

    def answering(self, policy: Policy) -> dict[str, str]:
        """{"answers": how they are written}, for the record; {} where nothing is asked."""
        if not self._asked:
            return {}
        return {"answers": "by a server" if self.server else way_of_writing(policy)}

    def _evaluated(self, policy: Policy, limit: int | None, how: How, closing: bool) -> Evaluation:
        reliability = Reliability()
        indices = range(len(self.rows))[:limit] if self.test is None or limit is not None else self.test
        metrics, row_losses = self._read(policy, indices, reliability, how)
        outside = self._batches(policy, self.retention)
        retained = retention_metrics(policy, self.retention_prior, outside, **how.of("retention"))
        metrics |= {f"retention/{name}": value for name, value in retained.items()}
        with self._served(policy) as served:
            ask = partial(self._answers, policy, how=how, served=served)
            samples = list(ask(HELDOUT, [self.rows[index] for index in indices]))
            metrics |= answer_metrics(samples)
            for name, problems in self.benchmarks.items() if closing else ():
                answers = list(ask(name, problems))
                metrics |= {f"{name}/{metric}": value for metric, value in answer_metrics(answers).items()}
                samples += answers
        return Evaluation(metrics, samples, reliability.bins(), row_losses)

    @contextmanager
    def _served(self, policy: Policy) -> Iterator[Served | None]:
        """The server, where one answers. By then nothing is read here any more, and devices are free for it."""
        asked = self._asked
        if self.server is None or not asked:
            yield None
            return
        check_thoughts(self.tokenizer)
        for model in (policy, self.prior, self.retention_prior):
            if model is not None:
                model.to(torch.device("cpu"))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        chat, first = ChatFormat(self.tokenizer), asked[0]
        probe = ServedPrompt(chat.prompt_ids(first.prompt, first.tools), chat.prompt_text(first.prompt, first.tools))
        with self.server.answering(self.sampling, probe) as served:
            yield served

    @property
    def _asked(self) -> list[Demonstration]:
        """All rows that are answered and judged."""
        rows = [*self.rows, *(row for problems in self.benchmarks.values() for row in problems)]
        return [row for row in rows if row.entry is not None]

    def _read(
        self, policy: Policy, indices: Sequence[int], reliability: Reliability, how: How
    ) -> tuple[dict[str, float], list[RowLoss]]:
        """What demonstrations of the held-out rows at `places` say, per token and row by row."""
        nats = dict.fromkeys(indices, 0.0)
        chosen = [
            (example, index)
            for example, index in zip(self.examples, self._row_of_example, strict=True)
            if index in nats
        ]
        chosen.sort(key=lambda pair: len(pair[0]))  # the order of the batches
        heldout, by_example = self._batches(policy, [example for example, _ in chosen]), list[float]()
        metrics = token_metrics(policy, self.prior, heldout, reliability, by_example, **how.of("held-out nll"))
        for (_, index), nll in zip(chosen, by_example, strict=True):
            nats[index] += nll
        losses = [RowLoss(**asdict(self._row_texts[index]), nll=nll) for index, nll in nats.items()]
        return metrics | row_metrics(losses), losses

    @property
    def _row_of_example(self) -> Sequence[int]:
        return range(len(self.examples)) if self.row_of_example is None else self.row_of_example

    @cached_property
    def _row_texts(self) -> list[RowText]:
        return described_rows(self.tokenizer, self.rows, self.examples, self._row_of_example)

    def _batches(self, policy: Policy, examples: Sequence[Example]) -> list[Batch]:
        """In order of length."""
        collate, size = Collate(int(self.tokenizer.pad_token_id)), self.batch_size
        groups = alike(examples, policy)
        return [collate(group[start : start + size]) for group in groups for start in range(0, len(group), size)]

    def _answers(
        self, policy: Policy, source: str, rows: Sequence[Demonstration], *, how: How, served: Served | None
    ) -> Iterator[Sample]:
        problems = [row for row in rows if row.entry is not None]
        if problems:
            yield from answer_problems(
                policy,
                self.tokenizer,
                problems,
                new_tokens=self.new_tokens or longest_answer(self.tokenizer, problems, self.examples),
                batch=self.batch_size,
                sampling=self.sampling,
                source=source,
                served=served,
                **how.of(f"{source} answers"),
            )


def longest_answer(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Demonstration], heldout: Sequence[Example]
) -> int:
    """Room for an answer as long as any demonstration of the problems or the held-out rows, in tokens."""
    shown = [len(tokenizer(row.completion, add_special_tokens=False)["input_ids"]) for row in problems]
    return SPARE_TOKENS + max([*shown, *(sum(example.supervised) for example in heldout)])


def _with_progress(batches: list[Any], *, title: str, hidden: bool) -> Iterable[Any]:
    """A bar with the time left on a terminal; nothing while the training's own bar is up, or where nobody watches."""
    quiet = hidden or not is_rank_zero() or not sys.stderr.isatty()
    return track(batches, title, console=Console(stderr=True), transient=True, disable=quiet)

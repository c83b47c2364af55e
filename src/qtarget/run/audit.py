"""What a model thinks of its training rows before it reads them: which contradict it, which contradict each other."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Collate
from qtarget.data.example import Example
from qtarget.model.cache import Cached
from qtarget.run import build
from qtarget.run.caching import build_missing
from qtarget.run.near_duplicates import near_duplicates
from qtarget.run.plan import Plan, make_plan
from qtarget.train.detection import auroc

CACHED = ("reference@references.prior=cached", "references.prior.detail=label")
"""Overrides under which the prior is scored once, for the audit and for every run on the same rows."""
AROUND = 40
"""Characters that are shown on either side of a token."""
LEAKS = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?INST\]|<</?SYS>>|^(Human|User|Assistant|### \w+):", re.MULTILINE)
"""Marks of chat templates, which have no business in an answer."""
ENDS = tuple(".!?…:;)]}\"'`*|>$。！？」")
CLOSED = 0.9
"""Share of the answers that end in such a mark, from which one that doesn't counts as cut."""
SHORTEST = 40
"""Characters of an answer that can be called cut."""
NAMED_ROWS = 5
"""Rows of a group that are named at most."""
UNKNOWN_TASK, KNOWN_TASK = 2.0, 1.0
"""Mean nll in nats above which a model is taken not to know the task, and below which it is taken to know it: the
starts of docs/results, Prior strength, have 3.4 (no sum right) and 0.55 (half of them right).
"""


@dataclass
class AuditedRow:
    """A training example, the model's log p [N] of its N supervised tokens, and what is odd about it."""

    example: Example
    logp: Tensor
    prompt: str
    answer: str
    reasons: list[str] = field(default_factory=list)

    @property
    def nll(self) -> float:
        """Mean over its supervised tokens, in nats."""
        return float(-self.logp.mean())

    @property
    def worst(self) -> int:
        """The index in the example of the token that the model thinks least likely."""
        supervised = [index for index in range(1, len(self.example)) if self.example.supervised[index]]
        return supervised[int(self.logp.argmin())]


@dataclass(frozen=True)
class Audit:
    """The training rows of a plan, scored."""

    plan: Plan
    rows: Sequence[AuditedRow]

    @cached_property
    def nll(self) -> float:
        """Mean over all supervised tokens, in nats."""
        return float(-torch.cat([row.logp for row in self.rows]).mean())

    def ranked(self) -> list[AuditedRow]:
        """The rows that contradict the model most, first."""
        return sorted(self.rows, key=lambda row: -row.nll)

    def suspicious(self) -> list[AuditedRow]:
        """Rows with something odd about them, then a twentieth of the others, those that contradict the model most."""
        odd = [row for row in self.ranked() if row.reasons]
        others = [row for row in self.ranked() if not row.reasons]
        return [*odd, *others[: max(1, len(others) // 20)]]

    def detection(self) -> dict[str, float]:
        """How well a low probability finds what noise made wrong, as the area under the ROC curve; none of no noise."""
        wrong = [torch.tensor(_of_labels(row.example, row.example.wrong)) for row in self.rows]
        tokens, rows = torch.cat(wrong), torch.stack([flags.any() for flags in wrong])
        if not tokens.any() or tokens.all():
            return {}
        found = {"wrong tokens": auroc(-torch.cat([row.logp for row in self.rows]), tokens)}
        by_row = torch.tensor([float(-row.logp.min()) for row in self.rows])
        return found | ({} if rows.all() else {"rows with wrong tokens": auroc(by_row, rows)})

    def around_worst(self, row: AuditedRow) -> tuple[str, str, str, float]:
        """(text before, the token that the model thinks least likely, text behind, its probability)."""
        ids, at = list(row.example.input_ids), row.worst
        before, token, behind = (self._decoded(part) for part in (ids[:at], ids[at : at + 1], ids[at + 1 :]))
        return before[-AROUND:], token, behind[:AROUND], float(row.logp.min().exp())

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.plan.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def advice(self) -> tuple[str, str]:
        """(what the mean nll says of the choice of a design, designs to compare), by docs/results."""
        if self.nll > UNKNOWN_TASK:
            return "the model hardly knows this task; from such a start sft was ahead of dft by 21 points", "sft"
        if self.nll < KNOWN_TASK:
            known = "the model knows this task; from such a start sft and dft were not told apart"
            return f"{known}, and one_minus_prior was behind", "sft,dft"
        return "the model knows this task in part; docs/results has no clear winner there", "sft,dft,label_smoothing"


def audit(cfg: RunConfig) -> Audit:
    """Scores the training rows with the prior, or reads the scores that are there. cfg: composed with `CACHED`.

    It looks at replies alone, also where data.prompt_weight teaches prompts. Raises QTargetError for whatever
    training would refuse.
    """
    quick = replace(cfg, eval=replace(cfg.eval, benchmarks={}, kl_prior=False), data={**cfg.data, "prompt_weight": 0.0})
    plan = make_plan(quick, cached=("prior",))
    build_missing(plan.caches, plan.references, lambda name: build.scoring_model(plan, name))
    scores, collate = Cached(plan.caches["prior"]), Collate(int(plan.tokenizer.pad_token_id))
    rows = [
        AuditedRow(example, scores.reference(collate([example])).label_scalars["logp"], *_exchange(plan, example))
        for example in plan.prepared.train
    ]
    for mark in (_mark_same_prompts, _mark_near_duplicates, _mark_cut, _mark_leaks):
        mark(rows)
    return Audit(plan, rows)


def _exchange(plan: Plan, example: Example) -> tuple[str, str]:
    """The text up to the last reply, and that reply without the special tokens around it."""
    start = len(example)
    while start and not example.supervised[start - 1]:
        start -= 1
    while start and example.supervised[start - 1]:
        start -= 1
    ids = list(example.input_ids)
    prompt, answer = (plan.tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:start], ids[start:]))
    return str(prompt), str(answer).strip()


def _of_labels(example: Example, column: Sequence[bool]) -> list[bool]:
    return [column[index] for index in range(1, len(example)) if example.supervised[index]]


def _mark_same_prompts(rows: Sequence[AuditedRow]) -> None:
    """Rows that ask the same, but for case and spaces, and answer the same, or something else: row by row."""
    groups: dict[str, list[AuditedRow]] = defaultdict(list)
    for row in rows:
        groups[_plain(row.prompt)].append(row)
    for group in groups.values():
        by_answer: dict[str, list[int]] = defaultdict(list)
        for row in group:
            by_answer[_plain(row.answer)].append(row.example.row)
        first = sorted((number, answer) for answer, held in by_answer.items() for number in held[: NAMED_ROWS + 1])
        for row in group:
            own = _plain(row.answer)
            same = (number for number in by_answer[own] if number != row.example.row)
            others = (number for number, answer in first if answer != own)
            for relation, numbers in (("the same as", same), ("another answer than", others)):
                if named := ", ".join(map(str, islice(numbers, NAMED_ROWS))):
                    row.reasons.append(f"{relation} row {named}")


def _mark_near_duplicates(rows: Sequence[AuditedRow]) -> None:
    """Rows most of whose word triples are another row's too, and that don't ask the very same."""
    near: dict[int, list[str]] = defaultdict(list)
    for first, second, similarity in near_duplicates([f"{row.prompt}\n{row.answer}" for row in rows]):
        a, b = rows[first], rows[second]
        if a.example.row != b.example.row and _plain(a.prompt) != _plain(b.prompt):
            near[first].append(f"{b.example.row} ({similarity:.2f})")
            near[second].append(f"{a.example.row} ({similarity:.2f})")
    for index, others in near.items():
        rows[index].reasons.append(f"nearly the same as row {', '.join(others[:NAMED_ROWS])}")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _mark_cut(rows: Sequence[AuditedRow]) -> None:
    """Answers that end within a sentence, where nearly all others don't."""
    long = [row for row in rows if len(row.answer) >= SHORTEST]
    open_ended = [row for row in long if not row.answer.endswith(ENDS)]
    if long and len(open_ended) <= (1 - CLOSED) * len(long):
        for row in open_ended:
            row.reasons.append(f"ends as if cut: …{row.answer[-20:]}")


def _mark_leaks(rows: Sequence[AuditedRow]) -> None:
    for row in rows:
        if leak := LEAKS.search(row.answer):
            row.reasons.append(f"holds a mark of a chat template: {leak[0]}")

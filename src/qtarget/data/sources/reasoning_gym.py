"""Demonstrations from reasoning-gym's generators, each with its own verifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

from qtarget import isolated
from qtarget.data.example import Demonstration, Span
from qtarget.data.sources import splits
from qtarget.data.sources.conversation import exchange, listed, trusted
from qtarget.data.sources.splits import check_weights, interleaved
from qtarget.errors import QTargetError
from qtarget.settings import FLAG, ByName, Checked, Nullable, Part, Text, Whole, setting

GENERATOR = "qtarget.data.sources.gym_problems"
AT_ONCE = 16
"""Problems that are made for one request: few, because some tasks need a second for each."""
GENERATION_SECONDS = 600.0
"""The time for so many. Most tasks make a thousand a second."""
SEEDS_APART = 2**23
"""Of its own seeds that lie between two of ours: almost every task draws problem i of a seed from seed + i (0.1.25), so
that neighbouring seeds have all problems but one in common."""


@dataclass(frozen=True)
class ReasoningGym(Checked):
    """Problems of reasoning-gym (https://github.com/open-thought/reasoning-gym, Apache-2.0), of one task or a mixture.

    task: its name; options: its own settings; answer: "answer" for the bare answer, or a key of the entry's metadata
    that holds a worked solution ("answer_cot" of gsm_symbolic). tasks, in place of a task: name → weight, or name →
    {weight, options, answer}; every beginning of a split holds them in these proportions. system: system message, None
    for the template's own.
    """

    NODE_KEY: ClassVar[str] = "data.source"
    task: str | None = setting(None, Nullable(Text()), "its name, such as chain_sum; null where tasks names several")
    options: Mapping[str, Any] = setting(
        {}, ByName(Part("fields of the task's own configuration")), "settings of the task"
    )
    answer: str = setting("answer", Text(), "answer, or the key of the metadata with a worked solution")
    system: str | None = setting(None, Nullable(Text()), "system message; null: the template's own")
    seed: int = setting(0, Whole(0), "of the draws")
    tasks: Mapping[str, Any] | None = setting(
        None,
        Nullable(ByName(Part("or {weight, options, answer} each"), "{TASK: WEIGHT}")),
        "of data=reasoning_gym: several tasks, in place of one",
    )
    trust_scorer: bool = setting(False, FLAG, "true: answers that are none, too, are put to the scorer")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.task is None) == (self.tasks is None):
            raise QTargetError(
                "name one task, data.source.task=chain_sum, or several with their weights, "
                "data.source.tasks={chain_sum: 2, gsm_symbolic: 1}"
            )
        if self.tasks is not None and self.options:
            raise QTargetError(
                "data.source.options are those of one task: write data.source.tasks={NAME: {weight: 1, options: {…}}}"
            )
        check_weights("data.source.tasks", {task.name: task.weight for task in self._tasks})

    @property
    def described(self) -> str:
        """The tasks."""
        return " + ".join(task.name for task in self._tasks)

    def rows(self, split: str, count: int | None) -> list[Demonstration]:
        """`count` problems of a split, no question twice. Raises QTargetError where a task has too few."""
        if count is None:
            raise QTargetError(
                f"{self.described} makes as many problems as are asked for: set data.rows and data.heldout_rows"
            )
        tasks = {task.name: task for task in self._tasks}
        order = interleaved({name: task.weight for name, task in tasks.items()}, count)
        problems = {name: iter(self._problems(task, split, order.count(name))) for name, task in tasks.items()}
        return [self._demonstration(tasks[name], next(problems[name]), row) for row, name in enumerate(order)]

    @property
    def _tasks(self) -> list[_Task]:
        if self.task is not None:
            return [_Task(self.task, 1, self.options, self.answer)]
        return [_task(name, said, self.answer) for name, said in (self.tasks or {}).items()]

    def _problems(self, task: _Task, split: str, count: int) -> list[Mapping[str, Any]]:
        problems = list(islice(self._unique(task, split, count), count))
        if len(problems) < count:
            raise QTargetError(
                f"{task.name} with {dict(task.options)} yields only {len(problems)} different problems for the split "
                f"{split!r}, {count} were asked for: ask for fewer rows, or widen its options"
            )
        return problems

    def _unique(self, task: _Task, split: str, count: int) -> Iterator[Mapping[str, Any]]:
        return splits.distinct(self._entries(task, splits.draws(count)), split, lambda entry: str(entry["question"]))

    def _entries(self, task: _Task, draws: int) -> Iterator[Mapping[str, Any]]:
        """Problems in the order of their numbers, made in a process where the same seed gives the same ones."""
        for start in range(0, draws, AT_ONCE):
            stop = min(start + AT_ONCE, draws)
            try:
                yield from isolated.ask(
                    GENERATOR,
                    task.name,
                    dict(task.options),
                    self.seed * SEEDS_APART,
                    draws,
                    range(start, stop),
                    seconds=GENERATION_SECONDS,
                )
            except isolated.UnansweredError as error:
                raise QTargetError(
                    f"reasoning-gym refuses task {task.name!r} with {dict(task.options)}: {error}"
                ) from error

    def _demonstration(self, task: _Task, entry: Mapping[str, Any], row: int) -> Demonstration:
        solution = entry["answer"] if task.answer == "answer" else entry["metadata"].get(task.answer)
        if solution is None and task.answer == "answer":
            raise QTargetError(
                f"{task.name} gives no answer to its problems, only a scorer of answers: there is nothing to train on"
            )
        if solution is None:
            raise QTargetError(f"{task.name} has no worked solution {task.answer!r} in its metadata; use answer=answer")
        spans = {"critical": _critical(str(solution), str(entry["answer"]))}
        messages = exchange(entry["question"], str(solution), self.system)
        return Demonstration(
            messages, row=row, spans=spans, entry=trusted({"verifier": "reasoning_gym", **entry}, self.trust_scorer)
        )


@dataclass(frozen=True)
class _Task:
    name: str
    weight: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: str = "answer"


def _task(name: str, said: Any, answer: str) -> _Task:
    """A task of a mixture, from its weight or from {weight, options, answer}."""
    if not isinstance(said, Mapping):
        return _Task(name, said, answer=answer)
    if unknown := set(said) - {"weight", "options", "answer"}:
        raise QTargetError(f"data.source.tasks.{name} has unknown {listed(sorted(unknown))}: weight, options, answer")
    return _Task(name, said.get("weight", 1), said.get("options") or {}, said.get("answer", answer))


def _critical(solution: str, answer: str) -> tuple[Span, ...]:
    """The final answer in a solution: every other token there ends in another answer, so these are critical."""
    start = solution.rfind(answer)
    return () if start < 0 or not answer else ((start, start + len(answer)),)

"""A few rows in the schema of every named data set, as its card and the loaders of public evaluation suites show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]


def numina(index: int) -> dict[str, Any]:
    problem, solution = f"Find $x_{index}$.", f"It is $\\boxed{{{index}}}$."
    turns = [{"content": problem, "role": "user"}, {"content": solution, "role": "assistant"}]
    return {
        "source": "olympiads" if index % 2 else "synthetic_math",
        "problem": problem,
        "solution": solution,
        "messages": turns,
    }


def openr1(index: int) -> dict[str, Any]:
    """Every fourth row has no generation that is both right and complete; in others the second is the first such."""
    verdicts = {0: ([True, False], [False, True]), 1: ([False, True], [True, True])}.get(index % 4, ([True] * 2,) * 2)
    return {
        "problem": f"What is {index} + 1?",
        "solution": f"It is {index + 1}.",
        "answer": str(index + 1),
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": f"{index:08x}-uuid",
        "is_reasoning_complete": verdicts[1],
        "generations": [f"<think>\na{index}\n</think>\n\nfirst", f"<think>\nb{index}\n</think>\n\nsecond"],
        "correctness_math_verify": verdicts[0],
        "correctness_llama": None,
        "finish_reasons": None,
        "correctness_count": sum(verdicts[0]),
        "messages": [{"content": "What is it?", "role": "user"}, {"content": "first", "role": "assistant"}],
    }


def m23k(index: int) -> dict[str, Any]:
    return {
        "answer_idx": 1,
        "source": "medqa",
        "metadata": "{}",
        "prompt": f"Case {index}?\nA. rest\nB. surgery",
        "answer_letter": "B",
        "answer_string": "surgery",
        "reasoning": "It bleeds.",
        "distilled_answer_string": "Surgery.\n\n**Answer: B**",
        "text": "…",
    }


def gsm8k(index: int) -> dict[str, Any]:
    answer = (
        f"She sells {index}/2 = <<{index}/2={index / 2}>>half.\nThat makes 1,{index:03} dollars.\n#### 1,{index:03}"
    )
    return {"question": f"Natalia sold {index} clips. How many dollars?", "answer": answer}


def math500(index: int) -> dict[str, Any]:
    return {
        "problem": f"Convert the point $(0,{index})$.",
        "solution": f"We have $\\boxed{{({index},\\frac{{\\pi}}{{2}})}}$.",
        "answer": f"\\left( {index}, \\frac{{\\pi}}{{2}} \\right)",
        "subject": "Precalculus",
        "level": 2,
        "unique_id": f"test/precalculus/{index}.json",
    }


def aime24(index: int) -> dict[str, Any]:
    solution = f"So the answer is $\\boxed{{{index}}}$."
    told = {"url": "https://artofproblemsolving.com", "year": "2024"}
    return {
        "id": 60 + index,
        "problem": f"Every morning {index} walks.",
        "solution": solution,
        "answer": f"{index:03}",
        **told,
    }


def amc23(index: int) -> dict[str, Any]:
    return {"id": index, "question": f"Cities $A$ and $B$ are {index} miles apart.", "answer": f"{index}.0", "url": "…"}


def minerva(index: int) -> dict[str, Any]:
    return {"question": f"Each of {index} flasks weighs what?", "answer": f"{index}e-3"}


def olympiad(index: int) -> dict[str, Any]:
    return {
        "id": 1606 + index,
        "question": f"Game {index}.",
        "solution": ["First.", "Then."],
        "final_answer": ["$2$"] if index % 2 else ["2", "3"],
        "context": None if index % 2 else "Xenia and Sergey play.",
        "modality": "Text-only",
        "unit": None,
        "is_multiple_answer": not index % 2,
        "answer_type": "Numerical",
    }


def medqa(index: int) -> dict[str, Any]:
    options = {"A": "Ampicillin", "B": "Ceftriaxone", "C": "Doxycycline", "D": "Nitrofurantoin"}
    told = {"meta_info": "step1", "metamap_phrases": ["woman"]}
    return {
        "question": f"A {index}-year-old woman.",
        "answer": "Ceftriaxone",
        "options": options,
        "answer_idx": "B",
        **told,
    }


def medmcqa(index: int) -> dict[str, Any]:
    return {
        "id": f"uuid-{index}",
        "question": f"Which of {index} nerves?",
        "opa": "Ulnar",
        "opb": "Median",
        "opc": "Radial",
        "opd": "Axillary",
        "cop": index % 5 - 1,
        "choice_type": "single",
        "exp": None,
        "subject_name": "Anatomy",
        "topic_name": None,
    }


def pubmedqa(index: int) -> dict[str, Any]:
    context = {"contexts": ["We studied.", f"In {index} plants."], "labels": ["BACKGROUND", "RESULTS"], "meshes": []}
    return {
        "pubid": 21645374 + index,
        "question": "Do mitochondria play a role?",
        "context": context,
        "long_answer": f"Results depict {index}.",
        "final_decision": ("yes", "no", "maybe")[index % 3],
    }


@dataclass(frozen=True)
class Named:
    """A data set by the name of its yaml: a row of its schema, and its splits."""

    row: Callable[[int], Mapping[str, Any]]
    train: str | None
    heldout: str | None


NAMED = {
    "numina_math_cot": Named(numina, "train", "test"),
    "openr1_math_15k": Named(openr1, "train", None),
    "m23k": Named(m23k, "train", None),
    "gsm8k": Named(gsm8k, "train", "test"),
    "math500": Named(math500, None, "test"),
    "aime24": Named(aime24, None, "train"),
    "amc23": Named(amc23, None, "test"),
    "minerva": Named(minerva, None, "test"),
    "olympiadbench": Named(olympiad, None, "test"),
    "medqa": Named(medqa, "train", "test"),
    "medmcqa": Named(medmcqa, "train", "validation"),
    "pubmedqa": Named(pubmedqa, None, "train"),
}


def parquet(path: Path, rows: list[Mapping[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def files_of(name: str, folder: Path, rows: int = 8) -> dict[str, str]:
    """Parquet files of a named data set by split; no row of one is in another."""
    known = NAMED[name]
    splits = [split for split in (known.train, known.heldout) if split]
    return {
        split: parquet(folder / f"{split}.parquet", [known.row(rows * place + index) for index in range(rows)])
        for place, split in enumerate(splits)
    }

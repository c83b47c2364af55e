"""Asked in a process of its own: is a mathematical answer right, and how is it spelled?"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from qtarget.data.verify.math_equal import right
from qtarget.data.verify.math_expressions import (
    MatrixValue,
    Ratio,
    Relation,
    Scalar,
    SetDifference,
    SeveralAnswers,
    Union,
    Value,
    Words,
    has_large,
)
from qtarget.data.verify.math_read import read

LEADS = 10

_LEAD = re.compile(r"\banswers?(?:\s+(?:is|are)\b\s*:?|\s*:|\s*=)", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[^\d\s])[.!?](?=\s|$)|(?<=\d)\.(?=\s|$)|\n")
_MARKED = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$(?![\s])((?:\\\$|[^$\n])+?)(?<![\\\s])\$(?!\d)|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL
)
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_LISTED = re.compile(
    r"\b(?:solutions|roots|zeros|zeroes)(?:\s+are)?\s*:?\s*([-+√(]?\d[^\n]*?)(?:\.(?:\s|$)|\n|$)", re.IGNORECASE
)
_REASON = re.compile(r"(?<=[\d)}$])[,;]?\s+(?:because|since|as|which)\b", re.IGNORECASE)
_JOINED = re.compile(r"\b(?:and|or)\b")
_ANY_WORD = re.compile(r"[A-Za-z]{2,}")
_WHOLE = r"(?:\d+\s+\d+\s*/\s*\d+|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3}){2,}|\d*\.\d+|\d+)"
_POWER = r"(?:\s*(?:\\times|\\cdot|×|\*|x)\s*10\s*\^\s*\{?\s*[+-]?\d+\}?|[eE][+-]?\d+)"
_NUMBER = rf"(?:(?:\\\$|[$€£¥₹])\s*)?[+-]?{_WHOLE}{_POWER}?(?:\s*/\s*\d+)?[½⅓⅔¼¾⅛]?(?:\s*\\?%)?"
_POINT = rf"[(\[]\s*(?:{_NUMBER}|-?∞)(?:\s*,\s*(?:{_NUMBER}|[+-]?∞))+\s*[)\]]"
_FIRST = r"(?<![\w.,^_:])"
_ATOM = r"(?:\d+(?:\.\d+)?)?(?:√\(?\d+\)?|√?[πxyzni](?![A-Za-z]))(?:\^\{?-?\d+\}?|[²³])?"
_OPERAND = rf"(?:{_ATOM}|\d+(?:\.\d+)?(?![A-Za-z]))"
_QUANTITIES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_FIRST}({_NUMBER})(?![\d]|[.,:]\d)",
        rf"{_POINT}(?:\s*(?:,|,?\s*and|,?\s*or|∪)\s*{_POINT})*",
        r"(?<![\w.,^_:])\d+(?:\s?:\s?\d+)+(?:\s*[ap]\.?m\b)?",
        rf"(?<![\w.,^_])-?(?:{_OPERAND}\s?[-+*/·]\s?)*{_ATOM}(?:\s?[-+*/·]\s?{_OPERAND})*",
    )
)
"""Numbers; points and intervals; ratios and times; sums, products and fractions with roots, π or variables in them."""
_NEGATIVE = re.compile(r"\bnegative\s+(?=\d)|(?<![\d)xyz] )\bminus\s+(?=\d)", re.IGNORECASE)


def answer(said: str, bare: bool, gold: str) -> tuple[bool, str]:
    """Is `said` equal to `gold`, and its canonical spelling. bare: the text is an answer and nothing else."""
    wanted = _wanted(gold)
    in_words = isinstance(wanted, Words)
    found = read(said) if bare else _found(said, in_words)
    if found is None:
        return False, ""
    if bare and isinstance(found, Words) and not in_words and found != wanted:
        found = _found(said) or found
    return right(wanted, found), spelled(found)


def _wanted(gold: str) -> Value:
    value = read(gold)
    if isinstance(value, Words) and _LEAD.search(gold):
        return _found(gold) or value
    return value


def _found(text: str, in_words: bool = False) -> Value | None:
    """The answer in a text: behind the last "answer is"; else the last formula; the text as one; its last number.

    in_words: whether what follows "answer is" may be words.
    """
    text = _NEGATIVE.sub("-", _plain_signs(text))
    leads = [lead.end() for lead in _LEAD.finditer(text)]
    for end in leads[: -LEADS - 1 : -1]:
        value = _stated(_SENTENCE.split(text[end:].lstrip(" \n:*"), maxsplit=1)[0], in_words)
        if value is not None:
            return value
    formulas = _formulas(text)
    if formulas:
        return formulas
    listed = _LISTED.findall(text)
    whole = (listed[-1] if listed else text).strip()
    if whole and "\n" not in whole and not _ANY_WORD.search(_unnamed(_JOINED.sub(" ", whole))):
        value = read(whole)
        if not isinstance(value, Words):
            return value
    return _last_number(text)


def _plain_signs(text: str) -> str:
    """One minus sign, and a fraction's slash."""
    return re.sub("[−–﹣－]", "-", text).replace("\u2044", "/")


def _stated(statement: str, in_words: bool) -> Value | None:
    statement = _REASON.split(statement, maxsplit=1)[0]
    formulas = _formulas(statement)
    if formulas:
        return formulas
    value = read(statement) if statement.strip() else None
    if value is None or (isinstance(value, Words) and not in_words):
        return _last_number(statement)
    return value


def _formulas(text: str) -> Value | None:
    """The last marked formula, with those before it that a comma, "and" or "or" joins to it."""
    found = [formula for formula in _MARKED.finditer(text) if not _PROSE.search(_unnamed(formula.group()))]
    if not found:
        return None
    joined = [found[-1]]
    for formula in found[-2::-1]:
        if not re.fullmatch(r"\s*(?:,|,?\s*and|,?\s*or)\s*", text[formula.end() : joined[0].start()]):
            break
        joined.insert(0, formula)
    texts = [next(filter(None, formula.groups())) for formula in joined]
    behind = re.match(r"\s*(\\?%|percent)", text[joined[-1].end() :])
    return read(", ".join(texts) + (r"\%" if behind else ""))


def _unnamed(formula: str) -> str:
    return re.sub(
        r"\\(?:text|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+|sqrt|sin|cos|tan|log|exp", " ", formula
    )


def _last_number(text: str) -> Value | None:
    """What stands last: a number, or all of the point, ratio or expression that it is a part of."""
    found = [quantity for pattern in _QUANTITIES for quantity in pattern.finditer(text)]
    found = [quantity for quantity in found if re.search(r"[\d√π]", quantity.group())]
    last = max(found, key=lambda quantity: (quantity.end(), -quantity.start()), default=None)
    return read(last.group()) if last else None


def spelled(value: Value) -> str:
    """Evaluated, decimals as fractions, of x = 5 the 5: equal answers are spelled alike."""
    return str(_SPELLINGS[type(value)](value))


def _several(value: SeveralAnswers) -> str:
    items = [spelled(item) for item in value.items]
    if value.left in ("", "{"):
        return "{" + ", ".join(sorted(items)) + "}"
    return f"{value.left}{', '.join(items)}{value.right}"


def _table(value: MatrixValue) -> str:
    return "[" + ", ".join(f"[{', '.join(map(spelled, row))}]" for row in value.rows) + "]"


def _relation(value: Relation) -> str:
    if set(value.signs) == {"="}:
        return spelled(value.sides[-1])
    signs = [*value.signs, ""]
    return " ".join(f"{spelled(side)} {sign}".strip() for side, sign in zip(value.sides, signs, strict=True))


def _number(value: Scalar) -> str:
    if value.expr is None or value.mark[:1] == "_" or has_large(value.expr):
        return value.mark.lstrip("_") or value.text
    number: Any = value.expr / 100 if value.mark == "%" else value.expr
    try:
        return str(number)
    except ValueError:  # Python prints no number of more than 4300 digits
        return value.text


_SPELLINGS: dict[type[Value], Callable[[Any], str]] = {
    Words: lambda value: str(value.text),
    Scalar: _number,
    SeveralAnswers: _several,
    Union: lambda value: " ∪ ".join(sorted(map(spelled, value.parts))),
    SetDifference: lambda value: f"{spelled(value.whole)} ∖ {spelled(value.removed)}",
    Ratio: lambda value: ":".join(map(spelled, value.parts)) + value.half,
    MatrixValue: _table,
    Relation: _relation,
}

"""The plain spelling of a mathematical answer → its parts."""

from __future__ import annotations

import re
from functools import lru_cache

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
    expression,
)
from qtarget.data.verify.math_quantities import HALF, is_unit
from qtarget.data.verify.math_text import FUNCTIONS, plain

SIGNS = "=≠<>≤≥≈"
_OPENING, _CLOSING = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")
_TOKEN = re.compile(r"\\[{}]|\\begin\s*\{[^{}]*\}|\\end\s*\{[^{}]*\}|\\[A-Za-z]+|.", re.DOTALL)
_MATRIX = re.compile(
    r"\\begin\s*\{((?:[pbB]|small)?matrix\*?|array)\}(?:\{[lcr|]*\}|\[[lcr]\])?(.*)\\end\s*\{\1\}", re.DOTALL
)
_FRENCH = re.compile(r"\](.*,.*)\[", re.DOTALL)
_AND = re.compile(r"\s*,?\s*(?:\\text\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*")
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?!\d|,\d)")
_SPACED_THOUSANDS = re.compile(r"([+-]?\d{1,3})((?: \d{3})+)(\.\d+)?")
_BUILDER = re.compile(r"[^|∈:]*(?:∈\s*\\mathbb\s*\{?\s*R\s*\}?\s*)?(?:\\mid|\\colon|\||:)(.*)", re.DOTALL)

_REALS = re.compile(
    r"(?:[a-z]\s*∈\s*)?(?:\\mathbb\s*\{?\s*R\s*\}?|(?:\\text\s*\{\s*)?all real(?:s| numbers?)\s*\}?)", re.I
)
_NONE = re.compile(
    r"(?:\\text\s*\{\s*)?(?:there (?:is|are) )?(?:no (?:real )?solutions?|(?:the )?empty set|none)\.?\s*\}?",
    re.IGNORECASE,
)
_LETTERS = re.compile(r"\\text\s*\{\s*(\(?[A-Z]\)?(?:\s*(?:,|,?\s*and)\s*\(?[A-Z]\)?)+)\s*\}")
_CASES = re.compile(
    r"\\begin\s*\{(?:cases|aligned|array)\}(?:\{[lcr]*\})?([^&]*)\\end\s*\{(?:cases|aligned|array)\}", re.DOTALL
)
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?|\d\d?([/-])\d\d?\1(?:\d\d|\d{4})")
_TO = re.compile(r"(\d)\s*(?:\\text\s*\{\s*to\s*\}|\bto\b)\s*(?=\d)")
_TEXT = re.compile(r"\\(?:text)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_UNIT_WORDS = re.compile(
    r"(.*[\d})\]%°|]|.*\\pi|.*(?<![A-Za-z])[a-z])\s*"
    r"((?:(?:\\text\s*\{[^{}]*\}|\\circ)(?:\s*\^\s*\{?-?\d\}?)?\s*(?:/|\\cdot)?\s*)+)",
    re.DOTALL,
)
_PLAIN_UNIT = re.compile(
    r"([+-]?(?:\d[\d,]*\.?\d*|\.\d+|\\frac\s*\{\d+\}\s*\{\d+\}|\d+/\d+)(?:\\cdot\s*10\^\{?[+-]?\d+\}?)?)"
    r"(?:(\s*%?)\s+([A-Za-z][A-Za-z .'/-]+?|[mgshL])"
    r"|\s*((?:[kcm]m|kg|mg|m[lL]|km/h|m/s|mph|ft|lbs?|[mM]iles|inches|hours)))"
    r"(?:\s*\^\s*\{?(\d)\}?)?",
)
_MEASURED = re.compile(
    r"(.*?(?:[\d)}%]|\\pi))\s*((?:[A-Za-z$]+\.?(?:\s*\^\s*\{?\s*-?\d\s*\}?)?(?:\s*(?:/|\\cdot)\s*|\s+|$))+)", re.DOTALL
)
_DECIMAL = re.compile(r"[+-]?(\d*)\.(\d+)(?:\\cdot 10\^\{?([+-]?\d+)\}?)?")
_BASE = re.compile(r"([0-9A-Za-z]+)\s*_\s*\{?\s*(?:\\text\{)?\s*(\d{1,2}|two|eight|ten|sixteen)\s*\}?\}?")
_BASES = {"two": "2", "eight": "8", "ten": "10", "sixteen": "16"}
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_XYZ = set("xyz")


@lru_cache(maxsize=2000)
def read(text: str) -> Value:
    """The parts of an answer. What can't be read as mathematics is words."""
    text = plain(text)
    letters, cases = _LETTERS.fullmatch(text), _CASES.fullmatch(text)
    if letters:
        text = letters[1]
    elif cases and "=" in cases[1]:
        text = ", ".join(re.split(r"\\\\", cases[1]))
    return _read(text)


def _read(text: str) -> Value:
    text = text.strip()
    for reader in (_matrix, _reals, _difference, _union, _several, _relation, _ratio, _signs, _bracketed, _words):
        value = reader(text)
        if value is not None:
            return value
    return _scalar(text)


def _split(text: str, separators: str) -> list[str]:
    """At signs outside all brackets; the signs stand between the parts, at odd places."""
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += (token in _OPENING or token.startswith(r"\begin")) - (token in _CLOSING or token.startswith(r"\end"))
        if depth == 0 and token in separators:
            parts += [token, ""]
        else:
            parts[-1] += token
    return parts


def _matrix(text: str) -> Value | None:
    found = _MATRIX.fullmatch(text)
    if found is None:
        inner = re.fullmatch(r"[(\[]\s*(\\begin.*\\end\s*\{[^{}]*\})\s*[)\]]", text, re.DOTALL)
        return _matrix(inner[1]) if inner else None
    rows = [
        row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr(?![A-Za-z])", found[2].replace(r"\hline", "")) if row.strip()
    ]
    return MatrixValue(tuple(tuple(_read(cell) for cell in row.split("&")) for row in rows))


def _reals(text: str) -> Value | None:
    return _in_brackets(r"-∞,∞", "(", ")") if _REALS.fullmatch(text) else None


def _difference(text: str) -> Value | None:
    """A ∖ B, and x ∈ A ∖ B; the last sign splits."""
    *whole, removed = _split(text, "∖")
    if len(whole) < 2:
        return None
    return SetDifference(_read("".join(whole[:-1])), _read(removed))


def _ratio(text: str) -> Value | None:
    half = HALF.search(text) if text[:1].isdigit() else None
    bare = text[: half.start()] if half and half.end() == len(text) else text
    bare = _TO.sub(r"\1:", bare)
    parts = _split(bare, ":")[::2]
    if len(parts) < 2 or _is_prose(bare):
        return None
    read_as = [_scalar(part.strip()) if part.strip() else None for part in parts]
    numbers = [part for part in read_as if isinstance(part, Scalar) and part.expr is not None and not part.mark]
    if len(numbers) < len(parts):
        return None
    return Ratio(tuple(numbers), half[1].lower() + "m" if half and half.end() == len(text) else "")


def _union(text: str) -> Value | None:
    parts = _split(text, "∪")
    if len(parts) == 1:
        return None
    name = _split(parts[0], "∈=")  # x ∈ A ∪ B
    return Union(tuple(map(_read, [name[-1], *parts[2::2]])))


def _several(text: str) -> Value | None:
    joined = _AND.search(text)
    listed = _AND.sub(", ", text) if not _MATRIX.search(text) else text
    listed = _ungrouped(listed, bracketed=False)
    parts = [part for part in _split(listed, ",;")[::2] if part.strip()]
    if len(parts) < 2:
        return None
    if re.search(r"∈", parts[0]) is None and any(map(_is_worded, parts)):
        return None
    word = re.search("and|or", joined.group()) if joined else None
    return SeveralAnswers(tuple(map(_read, parts)), joined=word.group() if word else "")


def _ungrouped(text: str, bracketed: bool) -> str:
    """Without the commas that group thousands: those with no space behind them, and in brackets only beside others."""
    if bracketed and not re.search(r"[,;]\s", text):
        return text
    return _THOUSANDS.sub(lambda found: found[1].replace(",", ""), text)


def _relation(text: str) -> Value | None:
    if text.count("∈") == 1:
        _, member = text.split("∈")
        return _read(member) if not re.fullmatch(r"\s*\\mathbb.*", member) else None
    parts = _split(text, SIGNS)
    if len(parts) == 1 or not parts[-1].strip() or _is_worded(text):
        return None
    if not parts[0].strip() and set(parts[1]) - {"=", "≈"}:  # "> 3"
        parts[0] = "x"
    sides = parts[2::2] if not parts[0].strip() else parts[::2]  # "≈ 3" and "= 3" say 3
    signs = parts[3::2] if not parts[0].strip() else parts[1::2]
    return Relation(tuple(map(_read, sides)), tuple(signs)) if len(sides) > 1 else _read(sides[0])


def _signs(text: str) -> Value | None:
    if "±" not in text:
        return None
    if "∓" in text or text.count("±") == 1:
        signed = [text.replace("±", "+").replace("∓", "-"), text.replace("±", "-").replace("∓", "+")]
    else:  # each of them is both
        signed = [text]
        for _ in range(min(text.count("±"), 4)):
            signed = [one.replace("±", sign, 1) for one in signed for sign in "+-"]
    return SeveralAnswers(tuple(_scalar(one.lstrip("+ ")) for one in signed))


def _bracketed(text: str) -> Value | None:
    found = _FRENCH.fullmatch(text)
    if found:
        return _in_brackets(found[1], "(", ")")
    left = next((sign for sign in _OPENING if text.startswith(sign)), "")
    right = next((sign for sign in (r"\}", *_CLOSING) if text.endswith(sign)), "")
    if not left or not right or not _closes_last(text):
        return None
    inner = text[len(left) : -len(right)]
    if left == "{":  # a group of LaTeX
        return _read(inner)
    return _in_brackets(inner, left, right)


def _in_brackets(inner: str, left: str, right: str) -> Value | None:
    if left == r"\{":
        builder = _BUILDER.fullmatch(inner)
        if builder and re.search(f"[{SIGNS}]", builder[1]):
            return _read(builder[1])
    parts = _split(_ungrouped(inner, bracketed=True), ",;")[::2]
    if left == r"\{":
        return SeveralAnswers(tuple(_read(part) for part in parts if part.strip()), "{", "}")
    if len(parts) == 1:
        return _read(inner) if left in {"(", "["} else None
    if {left, right} & {"{", "}", r"\}"}:
        return None
    return SeveralAnswers(tuple(map(_read, parts)), left, right)


def _closes_last(text: str) -> bool:
    """Does the bracket that opens the text close at its end?"""
    depth, tokens = 0, _TOKEN.findall(text)
    for place, token in enumerate(tokens):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0:
            return place == len(tokens) - 1
    return False


def _words(text: str) -> Value | None:
    if text in {"∅", r"\{\}"} or _NONE.fullmatch(text):
        return SeveralAnswers((), "{", "}")
    if _DATE.fullmatch(text):
        return Words(text)
    if _unit(text)[1] or not _is_prose(text):
        return None
    return Words(worded(text))


def worded(text: str) -> str:
    """Words without dress: case folded, white space collapsed, the letter of "(B)" alone."""
    text = " ".join(_TEXT.sub(r" \1 ", text).casefold().split()).strip(" .,;:!\"'`")
    return text.strip("()") if re.fullmatch(r"\([a-z]\)", text) else text


def _is_worded(part: str) -> bool:
    r"""Prose, but for a unit behind a number and the name of what an equation gives: \text{Area} = 5 cm^2."""
    *names, last = _split(part, SIGNS)[::2]
    named = [name for name in names if not _TEXT.fullmatch(name.strip())]
    return _is_prose(_unit(last.strip())[0]) or any(map(_is_prose, named))


def _is_prose(text: str) -> bool:
    """Are there words in it, beside commands, names of functions and products such as xyz?"""
    if any(_WORD.search(found) or re.fullmatch(r"\s*\(?[A-Z]\)?\s*", found) for found in _TEXT.findall(text)):
        return True
    bare = _COMMAND.sub(" ", re.sub(r"\\(?:mathbb|mathcal|overline|vec|begin|end)\s*\{[^{}]*\}|_\{[^{}]*\}", " ", text))
    found = [word for word in _WORD.findall(_TEXT.sub(" ", bare)) if word not in FUNCTIONS]
    return any(_is_word(word, alone=word == text.strip()) for word in found)


def _is_word(letters: str, *, alone: bool) -> bool:
    if not letters.isascii():
        return True
    if set(letters) <= _XYZ or (len(letters) == 2 and letters.casefold() not in {"no", "on", "up"}):
        return False
    return len(letters) > 3 or alone or letters.casefold() in {"the", "and", "not", "for", "yes", "are", "was", "has"}


def _unit(text: str) -> tuple[str, str]:
    """A scalar's text without its unit, and the unit."""
    found = _UNIT_WORDS.fullmatch(text)
    if found:
        unit = found[2].replace(r"\text", "").replace("{", "").replace("}", "").replace(r"\cdot", " ")
        return found[1], " ".join(unit.split())
    found = _MEASURED.fullmatch(text)
    if found and is_unit(found[2]):
        return found[1], found[2].replace(r"\cdot", " ").strip()
    found = _PLAIN_UNIT.fullmatch(text)
    if found:
        power = f"^{found[5]}" if found[5] else ""
        return found[1] + found[2].strip() if found[2] else found[1], (found[3] or found[4]).strip() + power
    return text, ""


def _scalar(text: str) -> Value:
    stripped, unit = _unit(text)
    stripped = _without_groups(stripped.strip())
    mark, stripped = _marked(stripped)
    based = _BASE.fullmatch(stripped)
    if based and any(letter.isdigit() for letter in based[1]):
        base = _BASES.get(based[2], based[2])
        if based[1].isdigit() or int(base) > 10:
            return Scalar(text, expression("0"), mark=f"_{base} {based[1].lstrip('0').upper() or '0'}", unit=unit)
    digits, place = _decimal(stripped)
    found = expression(stripped)
    if found is None and not unit:
        return Words(worded(text))
    return Scalar(stripped, found, digits, place, mark, unit)


def _without_groups(text: str) -> str:
    spaced = _SPACED_THOUSANDS.fullmatch(text)
    if spaced:
        return spaced[1] + spaced[2].replace(" ", "") + (spaced[3] or "")
    return _ungrouped(text, bracketed=False)


def _marked(text: str) -> tuple[str, str]:
    for mark, pattern in (("%", r"(.*?)\s*(?:%|\bpercent(?:age)?)"), ("°", r"(.*?)\s*(?:°|\bdegrees?)")):
        found = re.fullmatch(pattern, text, re.DOTALL)
        if found and not _FUNCTION.search(found[1]):
            return mark, found[1]
    return "", text


def _decimal(text: str) -> tuple[int, int]:
    found = _DECIMAL.fullmatch(text)
    if not found:
        return 0, 0
    whole, behind, power = found.groups()
    return len((whole + behind).lstrip("0")), int(power or 0) - len(behind)

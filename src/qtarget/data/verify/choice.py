"""Multiple choice: {"verifier": "choice", "answer": "B", "options": {"A": text, "B": text, …}}."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from qtarget.data.example import FINAL
from qtarget.data.verify.verdict import Entry, Verdict, boxed, final_answer, normal, tagged

LEADS = 10
"""So many "answer is" are looked at, from the last on."""
LONGEST = 1000
"""Characters of a statement that are looked at."""

_LEAD = re.compile(r"\b(?:answer|option|choice)(?:\s+is\b\s*:?|\s*:)", re.IGNORECASE)
_DRESS = " \t*_`$\"'“”(){}[]<>"
_LABEL = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*{|(?:option|choice|answer|letter)\s+", re.IGNORECASE)
_AFTER_KEY = r"(?:\W*$|\s*[)\]}:;*\"'”]|\s*[.,](?!\d)|\s+[-–—]|\s+(?:because|since|as)\b"
_AFTER_KEY += r"|\s+is\s+(?:the\s+)?(?:answer|best|correct|right|true)\b)"
_AFTER_TEXT = r"(?!\w|[.,]\d)"
_DENIED = r"\W*\s(?:(?:is|was)\s+(?:not|never|wrong|incorrect|false)|(?:isn|wasn|can)['’]t|cannot)\b"


def verdict(completion: str, entry: Entry) -> Verdict:
    r"""The answer is the key of the option chosen, "" where none is.

    Looked at in turn: the last \boxed{…}; what follows the last ####; what follows "answer is", "answer:", "option:"
    and the like, the last first; the first and the last line, which must not differ. Each of them chooses an option
    where it is, or begins with, the option's key ("B", "(b)", "**B.**", "B) Paris", "B is correct") or the option's
    full text ("Paris", "yes, it does"). A letter within a sentence chooses nothing, nor do two ("A or B"), nor a key
    with another option's text behind it, nor what is denied ("Rome is not the answer"). Of a completion with
    <answer>…</answer> only what stands there is looked at.
    """
    completion = tagged(completion)
    options = {str(key): str(text) for key, text in entry["options"].items()}
    chosen = next(filter(None, (_chosen(text, options) for text in _statements(completion))), None)
    chosen = chosen or _of_lines(completion, options)
    return Verdict(chosen != "" and chosen == str(entry["answer"]), chosen)


def _statements(completion: str) -> Iterator[str]:
    box = boxed(completion)
    if box is not None:
        yield box
    if FINAL in completion:
        yield final_answer(completion)
    leads = [lead.end() for lead in _LEAD.finditer(completion)]
    yield from (completion[end : end + LONGEST] for end in leads[: -LEADS - 1 : -1])


def _of_lines(completion: str, options: Mapping[str, str]) -> str:
    lines = completion.strip().splitlines() or [""]
    found = {_chosen(lines[0], options), _chosen(lines[-1], options)} - {""}
    return found.pop() if len(found) == 1 else ""


def _chosen(statement: str, options: Mapping[str, str]) -> str:
    said = _bare(statement)
    texts = {_bare(text): key for key, text in options.items()}
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    keys = {normal(key): key for key in options if key}
    if said in keys or said in texts:
        return keys.get(said) or texts[said]
    if _names_two(said, keys, longest_first):
        return ""
    key = next((name for name in keys if re.match(re.escape(name) + _AFTER_KEY, said)), None)
    if key is not None:
        behind = _beginning(said[len(key) :].lstrip(" )]}:;.,-–—*\"'”"), longest_first)
        return keys[key] if behind is None or texts[behind] == keys[key] else ""
    found = _beginning(said, longest_first)
    return "" if found is None or re.match(re.escape(found) + _DENIED, said) else texts[found]


def _beginning(said: str, longest_first: Iterable[str]) -> str | None:
    """The option's text that it begins with."""
    return next((text for text in longest_first if re.match(re.escape(text) + _AFTER_TEXT, said)), None)


def _names_two(said: str, keys: Iterable[str], texts: Iterable[str]) -> bool:
    """Does it begin with two options, such as "A, B" or "yes or no"?"""
    key, text = ("|".join(map(re.escape, names)) for names in (keys, texts))
    two_keys = rf"(?:{key})\W*(?:\b(?:and|or)\b|[,/&])\W*(?:{key})(?:\W|$)"
    two_texts = rf"(?:{text})\W*(?:\b(?:and|or)\b|[/&])\W*(?:{text})(?:\W|$)"
    return bool(re.match(two_keys, said)) or bool(text and re.match(two_texts, said))


def _bare(statement: str) -> str:
    """Its first line without emphasis, brackets and "option" before it, as it reads."""
    line = (statement[:LONGEST].strip().splitlines() or [""])[0]
    line = line.lstrip(_DRESS)
    label = _LABEL.match(line)
    line = line[label.end() :] if label else line
    return normal(line.strip(_DRESS).rstrip("." + _DRESS))

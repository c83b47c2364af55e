"""A table for a paper: LaTeX with booktabs, every character that TeX would misread escaped.

pylatexenc spells signs, Greek letters and accents, so that pdfLaTeX sets them too. Characters beyond (names in other
scripts) stay as they are; XeLaTeX and LuaLaTeX set those, with a font that has them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import normalize

from pylatexenc.latexencode import RULE_DICT, RULE_REGEX, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

LEFT_OUT = {"|": r"\textbar{}", "`": r"\textasciigrave{}", "\n": " ", "√": r"\ensuremath{\surd}"}
"""What pylatexenc 2.11 leaves to TeX, which would set a dash and quotes; and a root without what it is of."""


def _tilded(match: re.Match[str]) -> str:
    return rf"\ensuremath{{\tilde{{{escaped(match[1])}}}}}"


JOINED = [
    (re.compile("-(?=-)"), "-{}"),  # two hyphens in a row would be a dash
    (re.compile("(.)\u0303"), _tilded),
]
ENCODER = UnicodeToLatexEncoder(
    conversion_rules=[
        UnicodeToLatexConversionRule(RULE_REGEX, JOINED),
        UnicodeToLatexConversionRule(RULE_DICT, {ord(sign): spelling for sign, spelling in LEFT_OUT.items()}),
        "defaults",
    ],
    replacement_latex_protection="braces-after-macro",
    unknown_char_policy="keep",
    unknown_char_warning=False,
)


def latex_table(titles: Sequence[str], lines: Sequence[Sequence[str]], numeric: Sequence[bool], note: str) -> str:
    r"""A tabular with numbers to the right; `note` stands above it as a comment, to be made a caption."""
    columns = "".join("r" if is_number else "l" for is_number in numeric)
    head = [f"% {line}" for line in (r"needs \usepackage{booktabs}", *note.splitlines())]
    body = [_line(line, numeric) for line in lines]
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    titled = _line(titles, [False] * len(titles))
    return "\n".join([*head, begin, r"\toprule", titled, r"\midrule", *body, r"\bottomrule", end])


def escaped(text: str) -> str:
    """`text` as TeX shows it, character by character."""
    return ENCODER.unicode_to_latex(normalize("NFC", text))


def _line(cells: Sequence[str], numeric: Sequence[bool]) -> str:
    texts = [_number(cell) if is_number else escaped(cell) for cell, is_number in zip(cells, numeric, strict=True)]
    texts[0] = re.sub(r"^(?=[\[*])", "{}", texts[0])  # a line end takes [ and * for its own arguments
    return " & ".join(texts) + r" \\"


def _number(cell: str) -> str:
    """A hyphen before a digit is a minus."""
    return re.sub(r"-(?=[\d.])", "$-$", escaped(cell))

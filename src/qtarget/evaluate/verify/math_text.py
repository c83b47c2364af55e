r"""LaTeX as people and models write it → one plain spelling, in which signs are single characters."""

from __future__ import annotations

import re
import unicodedata

FUNCTIONS = (
    "arcsin",
    "arccos",
    "arctan",
    "arccot",
    "arcsec",
    "arccsc",
    "sinh",
    "cosh",
    "tanh",
    "coth",
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "log",
    "ln",
    "exp",
    "sqrt",
    "max",
    "min",
    "gcd",
    "lcm",
    "det",
)

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_FRACTION = re.compile(r"(?<=\d)?\s*([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])")

_RULES = (
    # How it looks
    (r"\\left\s*\.|\\right\s*\.", ""),
    (
        r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?|Biggl?|Biggr?|middle|displaystyle|textstyle|limits)"
        r"(?![A-Za-z])",
        "",
    ),
    (r"\\(?:lbrace|rbrace)(?![A-Za-z])", lambda found: r"\{" if "\\l" in found.group() else r"\}"),
    (r"\\(?:lbrack|rbrack)(?![A-Za-z])", lambda found: "[" if "\\l" in found.group() else "]"),
    (r"\\(?:langle|rangle)(?![A-Za-z])", lambda found: "(" if "\\l" in found.group() else ")"),
    (r"\\[lr]vert(?![A-Za-z])|\\vert(?![A-Za-z])", "|"),
    (r"\\(?:dfrac|tfrac|cfrac)", r"\\frac"),
    (r"\\(?:boldsymbol|mathbf|bm)\s*\{([^{}]*)\}", r"\1"),
    (r"\\(?:mathrm|text|operatorname|mathit|textit|rm)\s*\{\s*([ei])\s*\}", r"\1 "),
    (r"\\(?:textbf|textit|textrm|textnormal|mbox|hbox|mathrm|mathit|mathsf|operatorname)\s*\{", r"\\text{"),
    (r"(?<=\d)\\[,;:! ](?=\d{3}(?!\d))", ","),
    (r"(?<=\d)(?:~|\\ )(?=\d{3}(?!\d))", ","),
    (r"\\[!;:>]|\\,|\\quad|\\qquad|~|\\ |\\\n", " "),
    # Signs
    (r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])|<=|=<", "≤"),
    (r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])|>=", "≥"),
    (r"\\(?:neq|ne)(?![A-Za-z])|\\not\s*=|!=", "≠"),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\(?:approx|simeq|thickapprox|doteq)(?![A-Za-z])|≃", "≈"),
    (r"\\in(?![A-Za-z])", "∈"),
    (r"\\cup(?![A-Za-z])", "∪"),
    (r"\\(?:pm|plusmn)(?![A-Za-z])|\+/-|\+-", "±"),
    (r"\\mp(?![A-Za-z])", "∓"),
    (r"\\infty(?![A-Za-z])|(?<![A-Za-z\\])(?:infinity|inf)(?![A-Za-z])|\\text\{\s*infinity\s*\}", "∞"),
    (r"\\(?:emptyset|varnothing)(?![A-Za-z])", "∅"),
    (r"\\(?:cdot|times|ast)(?![A-Za-z])|·|×|∙|⋅", r"\\cdot "),
    (r"\*\*", "^"),
    (r"\*", r"\\cdot "),
    (r"÷", r"\\div "),
    (r"\^\s*\{?\s*(?:\\circ|°)\s*\}?|\\degree(?![A-Za-z])", "°"),
    (r"\\%", "%"),
    (r"\\lg(?![A-Za-z])", r"\\log_{10} "),
    (r"π", r"\\pi "),
    (r"√\s*\(", r"\\sqrt("),
    (r"√\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
    (r"(?<![A-Za-z\\])(" + "|".join(FUNCTIONS) + r"|pi)(?=[^A-Za-z]|$)", r"\\\1 "),
    # Numbers
    (r"(?<![\w.\\}])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?![\w.])", r"\1\\cdot 10^{\2}"),
    (r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)", r"(\1+\\frac{\2}{\3})"),
    (r"(\d*)\.(\d*)\\(?:overline|dot|bar)\s*\{?(\d+)\}?", lambda found: _repeating(*found.groups())),
    (r"([A-Za-z])'", r"\1_{prime}"),
    (r"\s+", " "),
)
_COMPILED = tuple((re.compile(pattern), replacement) for pattern, replacement in _RULES)

_MONEY = re.compile(r"(?:\\\$|[$€£¥₹])\s*(-?(?:\d[\d,]*(?:\.\d+)?|\.\d+))")
_CURRENCIES = {"€": "euros", "£": "pounds sterling", "¥": "yen", "₹": "rupees"}
_WRAPPED = (("$$", "$$"), ("$", "$"), (r"\[", r"\]"), (r"\(", r"\)"), ("**", "**"), ("`", "`"))


def plain(text: str) -> str:
    """The text in one spelling, without the marks of a formula around it."""
    text = unwrapped(_composed(text).strip())
    text = _MONEY.sub(_amount, text.replace("{,}", ",")).replace(r"\$", "").replace("$", " ")
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    return re.sub(r"(?:[.,;:]|(?<=[a-z]{2})!)+$", "", text.strip()).strip()


def unwrapped(text: str) -> str:
    """Without the dollars, brackets or stars that mark the whole text as a formula."""
    for left, right in _WRAPPED:
        inner = text[len(left) : -len(right)]
        is_marked = len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right)
        if is_marked and left not in inner and not (left == "$" and text.endswith(r"\$")):
            return unwrapped(inner.strip())
    return text


def _composed(text: str) -> str:
    r"""NFKC, but for what it would take apart or glue: x² is x^{2}, 1½ is 1\frac{1}{2}; one sort of minus sign."""
    text = re.sub(f"[{''.join(_SUPERSCRIPTS)}]+", lambda found: "^{" + _mapped(found, _SUPERSCRIPTS) + "}", text)
    text = re.sub(f"[{''.join(_SUBSCRIPTS)}]+", lambda found: "_{" + _mapped(found, _SUBSCRIPTS) + "}", text)
    text = _FRACTION.sub(_vulgar, text)
    return unicodedata.normalize("NFKC", re.sub("[−–﹣－]", "-", text.replace("\u00a0", " ")))


def _mapped(found: re.Match[str], letters: dict[str, str]) -> str:
    return "".join(letters[letter] for letter in found.group())


def _vulgar(found: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", found[1]).partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def _amount(found: re.Match[str]) -> str:
    return f"{found[1]}\\text{{ {_CURRENCIES.get(found[0][0], 'dollars')}}}"


def _repeating(whole: str, digits: str, repeated: str) -> str:
    r"""0.1\overline{6} as a fraction: (16 − 1)/90."""
    above = int(f"{whole or 0}{digits}{repeated}") - int(f"{whole or 0}{digits}")
    return rf"\frac{{{above}}}{{{'9' * len(repeated)}{'0' * len(digits)}}}"

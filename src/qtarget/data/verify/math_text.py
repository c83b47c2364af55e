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


def _modulus(found: re.Match[str]) -> str:
    return rf"\text{{ mod {next(filter(None, found.groups()))}}}"


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
    (r"\\mathcal\s*\{?\s*([A-Z])\s*\}?|\\overline\s*\{\s*([A-Z]{2})\s*\}", r"\1\2"),
    (r"\\frac\s*\{\s*d\s*([a-z])\s*\}\s*\{\s*d\s*([a-z])\s*\}", r"D_{\1\2}"),
    (r"(?<=,)\s*\.\.\.\s*(?=,)", r"\\ldots "),
    (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
    (r"\\(?:dfrac|tfrac|cfrac)", r"\\frac"),
    (r"\\(?:boldsymbol|mathbf|bm)\s*\{([^{}]*)\}", r"\1"),
    (r"\\(?:mathrm|text|operatorname|mathit|textit|rm)\s*\{\s*([ei])\s*\}", r"\1 "),
    (r"\\(?:textbf|textit|textrm|textnormal|mbox|hbox|mathrm|mathit|mathsf|operatorname)\s*\{", r"\\text{"),
    (r"\\text\s*\{([^{}]*\^\s*\{[^{}]*\}[^{}]*)\}", r" \1 "),
    (r"(?<=\d)\\[,;:! ](?=\d{3}(?!\d))", ","),
    (r"(?<=\d)(?:~|\\ )(?=\d{3}(?!\d))", ","),
    (r"(?<!\\)\\[!;:>, \n]|\\quad|\\qquad|~", " "),
    # Signs
    (r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])|<=|=<", "≤"),
    (r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])|>=", "≥"),
    (r"\\(?:neq|ne)(?![A-Za-z])|\\not\s*=|!=", "≠"),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\(?:approx|simeq|thickapprox|doteq)(?![A-Za-z])|≃", "≈"),
    (r"\\in(?![A-Za-z])", "∈"),
    (r"\\cup(?![A-Za-z])", "∪"),
    (r"\\(?:setminus|smallsetminus|backslash)(?![A-Za-z])", "∖"),
    (r"(?<=R)(\}?)\s*-\s*(?=\\\{)", r"\1∖"),
    (r"\\equiv(?![A-Za-z])|≡", "="),
    (r"\\(?:pm|plusmn)(?![A-Za-z])|\+/-|\+-", "±"),
    (r"\\mp(?![A-Za-z])", "∓"),
    (r"\\infty(?![A-Za-z])|(?<![A-Za-z\\])(?:infinity|inf)(?![A-Za-z])|\\text\{\s*infinity\s*\}", "∞"),
    (r"\\(?:emptyset|varnothing)(?![A-Za-z])", "∅"),
    (r"\\(?:cdot|times|ast)(?![A-Za-z])|·|×|∙|⋅", r"\\cdot "),
    (r"matrix\*\s*\}(?:\s*\[[lcr]\])?", "matrix}"),
    (r"\*\*", "^"),
    (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\cdot "),
    (r"\^\s*([+-]\s*\d+)", r"^{\1}"),
    (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"\*", r"\\cdot "),
    (r"÷", r"\\div "),
    (r"\^\s*\{?\s*(?:\\circ|°)\s*\}?|\\degree(?![A-Za-z])", "°"),
    (r"°\s*(?:\\text\{\s*)?C\s*\}?(?![A-Za-z])", r"\\text{ celsius}"),
    (r"°\s*(?:\\text\{\s*)?F\s*\}?(?![A-Za-z])", r"\\text{ fahrenheit}"),
    (r"\s*\(?\\[bp]?mod\s*(?:\{\s*(\d+)\s*\}|(\d+))\)?|\s*\(\s*mod\s*(\d+)\s*\)", _modulus),
    (r"\\%", "%"),
    (r"\\lg(?![A-Za-z])", r"\\log_{10} "),
    (r"π", r"\\pi "),
    (r"√\s*\(", r"\\sqrt("),
    (r"√\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
    (r"(?<![A-Za-z\\])(" + "|".join(FUNCTIONS) + r"|pi)(?=[^A-Za-z]|$)", r"\\\1 "),
    (r"\\text\s*\{\s*([^{}]*?)\s*,\s*\}", r"\\text{ \1}, "),
    (r"^\\text\s*\{\s*([-+]?\.?\d[^{}]*)\}$", r"\1"),
    (r"^(?:\\text\s*\{\s*)?(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+\(?([A-Z])\)?\s*\}?$", r"\1"),
    # Numbers
    (r"(?<![\w.\\}])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?![\w.])", r"\1\\cdot 10^{\2}"),
    (r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)", r"(\1+\\frac{\2}{\3})"),
    (r"^\(?([A-Za-z])\)$", r"\1"),
    (r"(?<=[\d°])\s*'(?![\w'])", r"\\text{ prime}"),
    (r"(?<=\))\s*\^\s*\{?\s*(?:T|\\top|\\intercal|\\text\{\s*T\s*\})\s*\}?$", ""),
    (r"^0[xX]([0-9A-Fa-f]+)$", r"\1_{16}"),
    (r"^0[bB]([01]+)$", r"\1_{2}"),
    (r"^(\d+)\s*\^?\s*\{?\s*(?:\\text\s*\{\s*)?(?:st|nd|rd|th)\s*\}?\s*\}?$", r"\1\\text{ th}"),
    (r"(\d*)\.(\d*)\((\d+)\)(?!\w)", lambda found: _repeating(*found.groups())),
    (r"(\d{0,20})\.(\d{0,9}?)(\d{1,6}?)\3{2,30}\s*(?:\.\.\.|\\[lc]?dots)", lambda found: _repeating(*found.groups())),
    (r"(\d*)\.(\d*)\\(?:overline|dot|bar)\s*\{?(\d+)\}?", lambda found: _repeating(*found.groups())),
    (r"([A-Za-z])'", r"\1_{prime}"),
    (r"\s+", " "),
)
_COMPILED = tuple((re.compile(pattern), replacement) for pattern, replacement in _RULES)

_MONEY = re.compile(r"(?:\\\$|[$€£¥₹]|\bUS(?:D\b|\\?\$)|\bEUR\b|\bRs\.?)\s*(-?(?:\d[\d,]*(?:\.\d+)?|\.\d+))")
_CURRENCIES = {"E": "euros", "R": "rupees", "€": "euros", "£": "pounds sterling", "¥": "yen", "₹": "rupees"}
"""By the first letter of a sign; any other is the dollar's."""
_WRAPPED = (("$$", "$$"), ("$", "$"), (r"\[", r"\]"), (r"\(", r"\)"), ("**", "**"), ("`", "`"))


def plain(text: str) -> str:
    """The text in one spelling, without the marks of a formula around it."""
    text = _TWO.sub(_with_braces, _number_word(unwrapped(_composed(text).strip())))
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
    text = _FRACTION.sub(_vulgar, text.replace("ℝ", r"\mathbb{R}").replace("\u2044", "/"))
    return unicodedata.normalize("NFKC", re.sub("[−–﹣－]", "-", text.replace("\u00a0", " ")))


_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS)}
_WORDS |= {word: f"{number}th" for number, word in enumerate(_ORDINALS, 1)}
_NUMBER_WORD = re.compile(
    rf"(?:\\text\s*\{{\s*)?(-|minus |negative )?({'|'.join(_WORDS)})\.?(?:\s*\}})?", re.IGNORECASE
)


def _number_word(text: str) -> str:
    """Twelve is 12, and third is 3rd, where nothing else stands there."""
    found = _NUMBER_WORD.fullmatch(text)
    return ("-" if found[1] else "") + _WORDS[found[2].lower()] if found else text


_ONE = r"(?:\\[A-Za-z]+|[^\s\\{}()])"
_BRACED = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_TWO = re.compile(rf"(\\[dtc]?(?:frac|binom)(?![A-Za-z]))\s*({_BRACED}|{_ONE})\s*({_BRACED}|{_ONE})")


def _with_braces(found: re.Match[str]) -> str:
    r"""\frac\pi4 is \frac{\pi}{4}."""
    above, below = (part if part.startswith("{") else f"{{{part}}}" for part in found.groups()[1:])
    return f"{found[1]}{above}{below}"


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

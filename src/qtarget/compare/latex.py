"""A table for a paper: LaTeX with booktabs, every character that TeX would misread escaped.

Greek letters and signs of the designs become mathematics, so that pdfLaTeX sets them too. Characters beyond (names in
other scripts) stay as they are; XeLaTeX and LuaLaTeX set those, with a font that has them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

GREEK = {
    **{"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta", "η": "eta", "θ": "theta"},
    **{"κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau"},
    **{"φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda"},
    **{"Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega"},
}
SIGNS = {
    **{"·": "cdot", "×": "times", "±": "pm", "≤": "leq", "≥": "geq", "≠": "neq", "≈": "approx", "→": "to"},
    **{"∞": "infty", "∂": "partial", "∈": "in", "∝": "propto", "‖": "|", "√": "surd"},
}
RAISED = {**dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)), "⁻": "-"}
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
PLAIN = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "−": "$-$",
    "½": r"$\frac{1}{2}$",
    "\u00a0": "~",
    "\n": " ",
}
ESCAPED = (
    PLAIN
    | {sign: rf"$\{name}$" for sign, name in (GREEK | SIGNS).items()}
    | {sign: f"$^{{{digit}}}$" for sign, digit in RAISED.items()}
    | {sign: f"$_{{{digit}}}$" for sign, digit in LOWERED.items()}
)
HYPHENS = re.compile("-(?=-)")  # two in a row would be a dash
TILDED = re.compile("(.)\u0303")


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
    parts = TILDED.split(text)  # what is between, then the letter under a tilde, and so on
    return "".join(_tilded(part) if place % 2 else _plain(part) for place, part in enumerate(parts))


def _plain(text: str) -> str:
    return "-{}".join("".join(ESCAPED.get(sign, sign) for sign in part) for part in HYPHENS.split(text))


def _tilded(letter: str) -> str:
    return rf"$\tilde{{{ESCAPED.get(letter, letter).strip('$')}}}$"


def _line(cells: Sequence[str], numeric: Sequence[bool]) -> str:
    told = [_number(cell) if is_number else escaped(cell) for cell, is_number in zip(cells, numeric, strict=True)]
    told[0] = re.sub(r"^(?=[\[*])", "{}", told[0])  # a line end takes [ and * for its own arguments
    return " & ".join(told) + r" \\"


def _number(cell: str) -> str:
    """A hyphen before a digit is a minus."""
    return re.sub(r"-(?=[\d.])", "$-$", escaped(cell))

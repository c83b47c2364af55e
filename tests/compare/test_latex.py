"""A table for a paper: what TeX would misread is shown as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_groups import write_run

from qtarget.compare.command import compare
from qtarget.compare.latex import escaped, latex_table

COMMANDS = {
    **{r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\ensuremath{<}": "<"},
    **{r"\ensuremath{>}": ">", r"\textbar{}": "|", r"\textasciigrave{}": "`", r"\textellipsis{}": "…", "''": '"'},
    **{
        r"\ensuremath{-}": "−",
        r"\ensuremath{\pi}": "π",
        r"\ensuremath{\gamma}": "γ",
        r"\textperiodcentered{}": "·",
        r"\ensuremath{\leq}": "≤",
        r"\ensuremath{\tilde{\ensuremath{\pi}}}": "π\u0303",
        r"\ensuremath{_0}": "₀",
        r"\texttwosuperior{}": "²",
        r"\'e": "é",
        r"\~n": "ñ",
        r"\ensuremath{\surd}": "√",
    },
    **{rf"\{sign}": sign for sign in "{}$&%#_"},
    **{"-{}": "-", r"\textemdash{}": "—", r"\textendash{}": "–", "~": "\u00a0"},
}
TOKEN = re.compile("|".join(map(re.escape, sorted(COMMANDS, key=len, reverse=True))) + r"|([^\\{}$&%#_^~|`])")


def as_set(source: str) -> str:
    """What TeX sets, by the meaning of each command; an error where it would read something else."""
    shown, place = "", 0
    while place < len(source):
        found = TOKEN.match(source, place)
        assert found, f"TeX would misread {source[place:]!r}"
        shown, place = shown + COMMANDS.get(found[0], found[0]), found.end()
    return shown


@pytest.mark.parametrize(
    "text",
    [
        r"100% of $x_1$ & \emph{all} #3 ~ ^ <|im_end|>",
        'say "yes" `no`',
        "--group-by a---b",
        "1−γ·π̃ ≤ π₀²",
        "accuracy % [95\u00a0%] … – —",
        "\\\\{}",
        "Añé √2 漢字 ||`",
    ],
)
def test_every_character_is_shown(text: str) -> None:
    assert as_set(escaped(text)) == text


def test_an_accent_is_a_command_whichever_way_it_is_encoded() -> None:
    assert escaped("e\u0301") == escaped("\u00e9") == r"\'e"
    assert escaped("x\u0303 α\u0303") == r"\ensuremath{\tilde{x}} \ensuremath{\tilde{\ensuremath{\alpha}}}"


def test_a_line_break_is_a_space() -> None:
    assert escaped("a\nb") == "a b"


def test_a_row_that_starts_with_a_bracket_or_a_star_is_no_argument_of_the_line_end() -> None:
    table = latex_table(["a", "b"], [["[0, 1]", "-1.5 [-2.0, -1.0]"], ["*", "3"]], [False, True], "one\ntwo")
    lines = table.splitlines()
    assert lines[1:4] == ["% one", "% two", r"\begin{tabular}{lr}"]
    assert lines[-4:-2] == [r"{}[0, 1] & $-$1.5 [$-$2.0, $-$1.0] \\", r"{}* & 3 \\"]


def test_the_grouped_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target, right in (("sft", 1), ("a_b%", 3)):
        for seed in (0, 1):
            write_run(tmp_path, target, seed, [row < right for row in range(4)])
    compare([tmp_path], format="tex", group_by=["target"], against=["target=sft"])
    printed = capsys.readouterr().out
    assert r"target & seeds & test/accuracy \% [95 \%] & by seed & difference [95 \%] & p \\" in printed
    assert re.search(
        r"^a\\_b\\% & 2 & 75\.0 \[.*\] & 75\.0 \\textellipsis\{\} 75\.0 & \+50\.0 \[.*\] & 0\.5 \\\\$", printed, re.M
    )
    assert printed.startswith("% needs \\usepackage{booktabs}\n% Intervals resample")


def test_the_plain_table_leaves_out_columns_that_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "sft", 0, [True, False])
    compare([tmp_path], format="tex")
    head = capsys.readouterr().out.split("\\toprule\n")[1].splitlines()[0]
    assert head == r"design & accuracy \% [95~\%] & nll \\"

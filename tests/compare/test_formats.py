"""One table in four formats: each shows every cell as it is, whatever the format makes of its signs."""

from __future__ import annotations

import csv
import io

from rich.console import Console

from qtarget.compare.formats import Table

ODD = ["[bold]a|b_c", "<p>", 'say "1,5"\n2', "\\"]
TABLE = Table(["text", "n"], [[cell, "-1"] for cell in ODD], [False, True], "a note", title="[red]title")


def shown(table: Table) -> str:
    console = Console(width=60, file=io.StringIO())
    console.print(table.rich())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_brackets_in_a_terminal_are_no_markup() -> None:
    """A sweep over `target: "dft [x]"` listed `dft`."""
    text = shown(TABLE)
    assert text.startswith("[red]title")
    assert "[bold]a|b_c" in text


def test_a_name_is_whole_where_numbers_leave_it_no_room() -> None:
    """`label_smoothing` and `label_scaling` were both `labe…`."""
    line = ["label_smoothing", *["0.123 [0.1, 0.2]"] * 3]
    text = shown(Table(["target", "a", "b", "c"], [line], [False, True, True, True]))
    assert "…" not in text.replace("0.123 [0.1, 0.2]", "")
    rule = next(line for line in text.splitlines() if "──" in line)
    rows = text.partition(rule)[2].splitlines()
    assert "".join(row.split()[0] for row in rows if row.strip()) == "label_smoothing"


def test_numbers_stand_to_the_right_in_a_terminal_and_on_github() -> None:
    words = shown(Table(["word", "number"], [["a", "1"], ["b", "100"]], [False, True])).splitlines()
    small, large = (next(line for line in words if line.strip().startswith(letter)) for letter in "ab")
    assert len(small.rstrip()) == len(large.rstrip())
    assert "| --- | ---: |" in TABLE.markdown()


def test_a_row_on_github_is_one_line_with_as_many_cells_as_titles() -> None:
    lines = TABLE.markdown().splitlines()
    rows = lines[2 : 2 + len(ODD)]
    assert [row.replace("\\|", "").count("|") for row in rows] == [3] * len(ODD)
    assert lines[-2:] == ["", "a note"]
    assert rows[1] == "| &lt;p> | -1 |"


def test_a_spreadsheet_reads_the_cells_and_no_note() -> None:
    assert list(csv.reader(io.StringIO(TABLE.csv()))) == [["text", "n"], *([cell, "-1"] for cell in ODD)]


def test_a_paper_has_the_note_above_and_minus_signs() -> None:
    lines = TABLE.latex().splitlines()
    assert lines[1] == "% a note"
    assert lines[2] == r"\begin{tabular}{lr}"
    assert lines[6] == r"{}[bold]a\textbar{}b\_c & $-$1 \\"


def test_a_table_without_numbers_needs_no_list_of_them() -> None:
    assert Table(["a", "b"], [["1", "2"]]).markdown() == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"

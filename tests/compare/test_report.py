"""What `compare` prints and writes: the page is self-contained, escaped and repeatable, the picture is not blank."""

import csv
import io
import json
import re

import matplotlib.image
import pytest
from test_groups import sample, write_losses
from test_runs import NOW, write_run

from qtarget.compare.columns import columns_of, reading_note
from qtarget.compare.command import CompareOptions, compare, compared, print_tables
from qtarget.compare.groups import kept_interval, problems
from qtarget.compare.report import differences, picture_plots, render
from qtarget.compare.run_groups import run_groups
from qtarget.errors import QTargetError
from qtarget.evaluate.samples import save_samples
from qtarget.plot.chart_data import chart_data
from qtarget.plot.figures import MOST_POINTS, panels
from qtarget.plot.looks import COLOURS, KNOWN
from qtarget.record.runs import read_runs

HISTORY = "\n".join(
    [json.dumps({"step": step, "train/nll": 2 - step / 20, "target/trust_clean": 0.8}) for step in (5, 10, 15)]
    + [
        json.dumps(
            {"step": 10, "val/accuracy": 0.3, "val/accuracy_low": 0.25, "val/accuracy_high": 0.35, "val/nll": 1.1}
        )
    ]
    + [json.dumps({"step": 15, "target/trust_noisy": 0.2, "train/loss": float("nan")})]
)


@pytest.fixture
def folder(tmp_path):
    demo = tmp_path / "demo"
    write_run(demo, "base", "0" * 12, accuracy=0.06, role="base", rows={"heldout": 400}, design={})
    write_run(demo, "sft", "a" * 12, accuracy=0.385, history=HISTORY)
    write_run(demo, "dft", "b" * 12, accuracy=0.412, history=HISTORY, config={"trainer": {"lr": 0.25}})
    write_run(demo, "gem", "c" * 12, status="failed", error=f"no cache at {tmp_path}/cache/t.pt", history=HISTORY)
    return demo


def panel(plots, key):
    return next(plot for plot in plots if plot.key == key)


def test_compare_writes_both_files_and_says_where(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert compare(["demo"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"dft +p\^0.5 +self +1\+λ +41.2 \[37.2, 46.2\] +0.630 *$", printed, re.M)
    assert "demo/report.html" in printed
    assert "demo/comparison.png" in printed
    assert "qtarget train -m experiment=demo target=dft,sft seed=1" in printed
    assert "Not in the table: 1 failed:" in printed
    assert (folder / "report.html").stat().st_size < 1_500_000


def test_tables_fit_a_hundred_columns_with_long_names(tmp_path, capsys):
    design = {
        "reliance": "1/(1+exp(β·(log p − τ)))",
        "residual": "p^0.75·π_T^0.25·π_0^0.5",
        "weight": "clip(1/π_0, 0, 10)",
    }
    write_run(tmp_path / "demo", "a_very_long_design_name_with_options", "a" * 12, design=design, role="control")
    print_tables(read_runs([tmp_path], NOW))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("50.0 [46.0, 55.0]" in line for line in lines)
    assert any("960 (384)" in line and "1,234" in line for line in lines)


def test_out_and_unfinished_only(tmp_path, capsys):
    write_run(tmp_path / "demo", "gem", "c" * 12, status="failed", error="out of memory", metrics={})
    assert compare([tmp_path / "demo"], out=tmp_path / "new" / "place") == 1
    assert (tmp_path / "new" / "place" / "comparison.png").exists()
    assert "No run has finished yet." in capsys.readouterr().out


def test_csv_is_alone_on_stdout_and_keeps_every_digit(folder, capsys):
    compare([folder], format="csv")
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert rows["dft"]["test/accuracy"] == "0.412"
    assert (rows["dft"]["trainer.lr"], rows["sft"]["trainer.lr"]) == ("0.25", "")
    assert "gem" not in rows
    compare([folder], format="csv", failed=True)
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert rows["gem"]["status"] == "failed"


def test_a_failed_run_has_no_line_unless_asked_for(folder):
    for failed, expected in ((False, {"sft", "dft"}), (True, {"sft", "dft", "gem · failed"})):
        runs, grouped, swept = compared([folder], CompareOptions(failed=failed))
        lines = {line.mark.label for plot in picture_plots(runs, grouped) for line in plot.lines}
        assert lines == expected
        page = render(runs, grouped, swept)
        assert "Not in the table: 1 failed" in page
        assert "no cache at …/t.pt" in page


def test_markdown_keeps_a_bar_inside_its_cell(tmp_path, capsys):
    write_run(tmp_path / "demo", "a|b", "a" * 12)
    compare([tmp_path / "demo"], format="md")
    head, _, row = capsys.readouterr().out.splitlines()[:3]
    assert head.startswith("| design | reliance γ |")
    assert row.startswith("| a\\|b | p^0.5 |")


def test_unknown_format_names_the_known_ones(folder):
    with pytest.raises(QTargetError, match="rich, md, csv"):
        compare([folder], format="pdf")


def test_page_shows_the_rows_and_what_differs(folder):
    page = render(read_runs([folder], NOW))
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.S)
    (row,) = [row for row in rows if ">dft<" in row and "41.2 [37.2, 46.2]" in row]
    assert 'data-sort="0.412"' in row
    assert COLOURS[KNOWN.index("dft")] in row
    assert "40 % of the training rows made wrong" in page
    assert "failed after step 15" in page
    (difference,) = differences([run for run in read_runs([folder], NOW) if run.name in ("sft", "dft")])
    assert (difference.key, difference.values, difference.of_design) == ("trainer.lr", ("0.25", "–"), False)


def test_page_escapes_what_comes_from_runs(tmp_path):
    evil = "<script>alert(1)</script>"
    history = '{"step": 1, "val/accuracy": 0.5}'
    write_run(tmp_path / "demo", evil, "a" * 12, history=history, design={"reliance": evil, "repr": evil})
    write_run(tmp_path / "demo", "gem", "b" * 12, status="failed", error=evil, overrides=[f"target={evil}"])
    page = render(read_runs([tmp_path], NOW))
    assert evil not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    data = json.loads(re.search(r'id="figures">(.*?)</script>', page)[1])
    assert data["panels"]["progress"]["lines"][0]["label"] == evil  # the script writes it as text


def test_page_loads_nothing_and_names_no_folder_of_the_machine(folder, tmp_path):
    page = render(read_runs([folder], NOW))
    assert not re.search(r"""<(script|link|img|iframe)\b[^>]*\b(src|href)\s*=""", page)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert "@import" not in page
    assert str(tmp_path) not in page
    assert "…/t.pt" in page


def test_columns_that_no_run_fills_are_left_out(folder, capsys):
    runs = read_runs([folder], NOW)
    titles = [column.title for column in columns_of(runs)]
    assert "KL to prior" not in titles
    assert {"nll", "trust clean", "trust wrong"} <= set(titles)
    assert ">KL to prior<" not in render(runs)
    compare([folder], format="md")
    assert "KL to prior" not in capsys.readouterr().out


def test_runs_that_nobody_judged_show_the_nll_of_their_rows_with_its_interval(tmp_path, capsys):
    for name, level in (("sft", 1.0), ("dft", 1.2)):
        write_losses(tmp_path / "demo", name, 0, [level, 2 * level, 1.5, 4.0], [1, 2, 2, 4])
    (run,) = [run for run in read_runs([tmp_path]) if run.name == "sft"]
    interval = kept_interval(run.folder, "test/nll")
    compare([tmp_path / "demo"], format="md")
    printed = capsys.readouterr().out
    head, _, row = printed.splitlines()[:3]
    assert "| nll [95\u00a0%] |" in head
    assert "accuracy" not in printed
    shown = [float(text) for text in re.search(r"\| (\S+) \[(\S+), (\S+)\]", row).groups()]
    assert shown == pytest.approx([interval.mean, interval.low, interval.high], abs=1e-3)
    assert "held-out problems" not in printed
    assert "the luck of the rows drawn" in printed
    page = render(read_runs([tmp_path]))
    assert "“wrong” tokens" not in page
    assert "the luck of the rows drawn" in page


def test_a_note_speaks_of_no_interval_where_there_is_none(tmp_path):
    write_run(tmp_path / "demo", "sft", "a" * 12, metrics={"test/nll": 0.5})
    assert reading_note(read_runs([tmp_path])).endswith("No interval is known: a small gap is not a finding.")


def test_the_page_names_the_picture_only_where_it_lies_beside_it(folder):
    compare([folder])
    assert "comparison.png" in (folder / "report.html").read_text()
    assert "comparison.png" not in render(read_runs([folder], NOW))


def test_same_runs_same_bytes(folder, tmp_path):
    for out in ("one", "two"):
        compare([folder], out=tmp_path / out)
    for name in ("report.html", "comparison.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_picture_is_of_readme_size_and_not_blank(folder):
    compare([folder])
    pixels = matplotlib.image.imread(folder / "comparison.png")
    height, width = pixels.shape[:2]
    assert (width, height) == (1400, 1040)
    quarters = [pixels[y : y + 420, x : x + 620, :3] for y in (20, 520) for x in (70, 775)]
    coloured = [((part.max(-1) - part.min(-1)) > 0.15).sum() for part in quarters]
    assert min(coloured) > 30


def test_plots_hold_the_numbers_of_the_runs(folder):
    plots = panels(run_groups(read_runs([folder], NOW)))
    accuracy = panel(plots, "accuracy")
    assert [(dot.mark.label, round(dot.value, 1), round(dot.high, 1)) for dot in accuracy.dots] == [
        ("base", 6.0, 11.0),
        ("dft", 41.2, 46.2),
        ("sft", 38.5, 43.5),
    ]
    assert accuracy.reference == pytest.approx(6.0)
    nll = {(line.mark.label, line.faint): (line.steps, line.values) for line in panel(plots, "nll").lines}
    assert nll["sft", True] == ((5, 10, 15), (1.75, 1.5, 1.25))
    assert nll["sft", False] == ((10,), (1.1,))
    assert ("gem · failed", True) in nll
    assert "±5 percentage points" in panel(plots, "progress").caption
    trust = {(line.mark.label, line.faint): line.values for line in panel(plots, "trust").lines}
    assert (trust["dft", False], trust["dft", True]) == ((0.8, 0.8, 0.8), (0.2,))


def test_trust_is_one_line_where_tokens_are_not_split(tmp_path):
    write_run(tmp_path / "demo", "sft", "a" * 12, history='{"step": 1, "target/trust": 1.0}')
    (line,) = panel(panels(run_groups(read_runs([tmp_path], NOW))), "trust").lines
    assert (line.values, line.faint) == ((1.0,), False)
    assert line.marked  # a single point without a marker would not be seen


def test_long_lines_are_averaged_not_cut(tmp_path):
    history = "\n".join(json.dumps({"step": step, "train/nll": float(step)}) for step in range(1, 1001))
    write_run(tmp_path / "demo", "sft", "a" * 12, history=history)
    (line,) = panel(panels(run_groups(read_runs([tmp_path], NOW))), "nll").lines
    assert len(line.steps) <= MOST_POINTS
    assert line.steps == line.values
    assert line.values[0] == pytest.approx(5.5)  # mean of steps 1 to 10


def test_a_run_looks_the_same_everywhere_and_like_no_other(tmp_path):
    for digest in range(25):
        write_run(tmp_path / "demo", f"design{digest}", f"{digest:012x}", 0.9 - digest / 100, history=HISTORY)
    runs = read_runs([tmp_path], NOW)
    marks = [group.mark for group in run_groups(runs)]
    assert len({(mark.colour, mark.symbol) for mark in marks}) == 25
    looks = {(mark.label, mark.colour) for mark in marks}
    for plot in chart_data(panels(run_groups(runs)))["panels"].values():
        assert {(mark["label"], mark["colour"]) for mark in (*plot["dots"], *plot["lines"])} == looks


def test_odd_names_are_drawn_as_they_are(tmp_path):
    write_run(tmp_path / "demo", "$a^{$ 温度 _x", "a" * 12, history=HISTORY)
    write_run(tmp_path / "demo", "_hidden", "b" * 12, history=HISTORY)
    assert compare([tmp_path / "demo"]) == 0


def test_answers_stand_on_the_page_where_the_runs_disagree_first(tmp_path):
    for name, right in (("sft", [True, False, True]), ("dft", [True, True, False])):
        folder = write_run(tmp_path / "demo", name, name * 4)
        save_samples(folder, [sample(row, correct, f"<b>{row}?") for row, correct in enumerate(right)])
    runs = read_runs([tmp_path])
    assert [problem.prompt for problem in problems(runs)] == ["<b>1?", "<b>2?", "<b>0?"]
    text = render(runs)
    assert "&lt;b&gt;1?" in text
    assert text.index("&lt;b&gt;1?") < text.index("&lt;b&gt;0?")
    assert "✓" in text
    assert "✗" in text

"""What `qtarget lens` measures, draws and says: laws of the curves, the page, and demonstrations read by a model."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
import yaml
from worlds import load_design

import qtarget
from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import conf_dir, options
from qtarget.data.batch import Collate
from qtarget.data.token_text import pieces
from qtarget.lens.command import every_name, read_request
from qtarget.lens.curves import PROGRESS, QUANTITIES, STOPS, Curve, CurvePoint, World, marks, panels, sweep, trace
from qtarget.lens.page import TEMPLATE, template_values, write_lens
from qtarget.lens.picture import draw_lens
from qtarget.lens.reading import read_demonstrations
from qtarget.lens.token_table import (
    CLIP,
    Alternative,
    Demonstrations,
    DesignReading,
    Pull,
    Token,
    TokenRow,
    css_shade,
    draw_tokens,
    shade,
)
from qtarget.math.loss import IGNORE, linear_loss
from qtarget.model import provide
from qtarget.model.builtin import tiny_tokenizer
from qtarget.plot.page import render
from qtarget.run.plan import make_plan
from qtarget.run.stored_config import run_config

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
DESIGNS = options("target")
WORLD = World.default()
EVIL = "<script>alert(1)</script>"
FEW = ("sft", "dft", "kd")


@pytest.fixture(scope="module")
def curves() -> dict[str, Curve]:
    """Every shipped design, drawn once."""
    names = every_name()
    return {
        name: trace(load_design(name), mark, formula(name), WORLD)
        for name, mark in zip(names, marks(names), strict=True)
    }


def formula(name: str) -> str:
    """Of the yaml itself: to compose it takes a tenth of a second."""
    written: str = yaml.safe_load((conf_dir() / f"target/{name}.yaml").read_text())["about"]["formula"]
    return written


def close(got: Any, expected: Any, within: float = 1e-9) -> None:
    assert got == pytest.approx(expected, abs=within)


# The world


def test_the_world_is_one_of_distributions_over_the_same_tokens() -> None:
    for row in (WORLD.prior, WORLD.teacher, *(WORLD.policy(p) for p in sweep())):
        assert len(row) == len(WORLD.tokens)
        assert min(row) > 0
        close(sum(row), 1)
    assert WORLD.tokens[0] == "y"
    assert (
        max(range(1, len(WORLD.tokens)), key=WORLD.teacher.__getitem__) != 1
    )  # the teacher's rival is not the policy's


def test_the_sweep_rises_through_the_stops() -> None:
    values = sweep()
    assert list(values) == sorted(set(values))
    assert values[0] == pytest.approx(0.002)
    assert values[-1] == pytest.approx(0.998)
    assert set(STOPS.values()) <= set(values)


# Laws of the curves


def test_sft_puts_all_on_the_label_and_pulls_by_what_is_missing(curves: dict[str, Curve]) -> None:
    for point in curves["sft"].points:
        close(point.target, (1.0, *[0.0] * (len(WORLD.tokens) - 1)))
        close((point.pull, point.trust, point.nll), (1 - point.p, 1.0, -math.log(point.p)))
    for quantity in QUANTITIES:
        close(curves["sft"].values(quantity), tuple(quantity.plain(p) for p in sweep()))


def test_dft_trusts_by_probability_and_keeps_the_others_in_proportion(curves: dict[str, Curve]) -> None:
    for point in curves["dft"].points:
        close(point.trust, point.p)
        close(point.target[1:], tuple((1 - point.p) * value for value in point.policy[1:]))


def test_distillation_has_the_stated_teacher_as_target(curves: dict[str, Curve]) -> None:
    for point in curves["kd"].points:
        close(point.target, WORLD.teacher)


def test_label_smoothing_spreads_its_share_evenly(curves: dict[str, Curve]) -> None:
    size = len(WORLD.tokens)
    for point in curves["label_smoothing"].points:
        close(sum(point.target[1:]), 0.1 * (size - 1) / size)
        close(point.target[1:], [0.1 / size] * (size - 1))


def test_a_top_k_design_leaves_the_tokens_off_the_top_where_they_are(curves: dict[str, Curve]) -> None:
    kept = sorted(range(len(WORLD.tokens)), key=WORLD.teacher.__getitem__)[-4:]
    for point in curves["kd_support"].points:
        for token in set(range(len(WORLD.tokens))) - set(kept):
            close(point.target[token], point.policy[token])
    assert any("4 likeliest" in note for note in curves["kd_support"].notes)


def test_curves_agree_with_the_induced_target_of_the_loss_itself(curves: dict[str, Curve]) -> None:
    """torch's own label smoothing, differentiated by the public lens."""

    def smoothed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)

    for p in STOPS.values():
        point = curves["label_smoothing"].at(p)
        logits = torch.tensor([point.policy], dtype=torch.float64).log()
        close(qtarget.induced_target(smoothed, logits, torch.tensor([0]))[0].tolist(), point.target)


@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_gives_finite_curves_that_hang_together(name: str, curves: dict[str, Curve]) -> None:
    curve = curves[name]
    assert [point.p for point in curve.points] == list(sweep())
    for point in curve.points:
        held = [*point.target, point.reliance, point.weight, point.trust, point.loss, point.nll]
        assert all(map(math.isfinite, held))
        close(sum(point.target), 1)  # shifting the logits changes no loss
        close(point.pull, point.trust * (1 - point.p))
    assert curve.formula == formula(name)


def test_negative_entries_are_said_to_be_the_designs_own_or_the_steps(curves: dict[str, Curve]) -> None:
    assert curves["gem"].ranges(overshooting=False)
    assert not curves["gem"].ranges(overshooting=True)
    low, high = WORLD.prior[0], sweep()[-1]  # w = p/π_0 exceeds 1 from the prior's probability on
    ((start, end),) = curves["iw_sft"].ranges(overshooting=True)
    assert low < start < low + 0.02
    assert end == high
    assert not curves["iw_sft"].ranges(overshooting=False)
    for name in ("sft", "dft", "kd", "target_sft", "label_smoothing"):
        assert not any(point.negative for point in curves[name].points)


def test_designs_that_compare_tokens_say_so(curves: dict[str, Curve]) -> None:
    told = {name: " ".join(curve.notes) for name, curve in curves.items()}
    assert "tokens of a step" in told["talr"]
    assert "tokens of a sequence" in told["iw_sft"]
    assert "tokens of a" not in told["dft"]
    assert "reads the teacher" in told["target_sft"]


def test_schedules_stand_at_their_end() -> None:
    scheduled = load_design("label_smoothing", **{"reliance.smoothing": "linear:0:0.4"})
    curve = trace(scheduled, marks(["x"])[0], "", WORLD)
    assert PROGRESS == 1
    close(curve.at(0.3).reliance, 0.6)


# The plots


def test_plots_hold_what_was_measured_in_the_designs_colours(curves: dict[str, Curve]) -> None:
    few = [curves[name] for name in FEW]
    drawn = panels(few)
    assert [panel.key for panel in drawn] == [quantity.key for quantity in QUANTITIES]
    for panel in drawn:
        looks = {line.mark.label: line.mark.colour for line in panel.lines if line.dash != "dotted"}
        assert looks == {curve.name: curve.mark.colour for curve in few}
    pull = next(panel for panel in drawn if panel.key == "pull")
    dft = next(line for line in pull.lines if line.mark.label == "dft")
    close(dft.values, [p * (1 - p) for p in sweep()], within=1e-5)
    (dotted,) = (line for line in pull.lines if line.dash == "dotted")
    close(dotted.values, [1 - p for p in sweep()], within=1e-4)


def test_no_two_designs_look_alike() -> None:
    assert len({(mark.colour, mark.symbol) for mark in marks(DESIGNS)}) == len(DESIGNS)


# The page


class Balanced(HTMLParser):
    """Fails on a tag that is closed without having been opened, or left open."""

    void = ("meta", "input", "br", "img", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())


def data_of(text: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def well_formed(text: str) -> None:
    parser = Balanced()
    parser.feed(text)
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids))


def written(path: Path, *arguments: Any, **options: Any) -> str:
    write_lens(*arguments, path, **options)
    return path.read_text(encoding="utf-8")


def test_the_page_of_all_designs_names_each_and_is_well_formed(curves: dict[str, Curve], tmp_path: Path) -> None:
    text = written(tmp_path / "lens.html", list(curves.values()), WORLD, shown=["sft", "dft"])
    well_formed(text)
    for curve in curves.values():
        key = rf'<button type="button" aria-pressed="(\w+)" data-run="{curve.mark.index}"[^>]*>'
        found = re.search(rf"{key}.*?</span>{curve.name}</button>", text)
        assert found
        assert found[1] == ("true" if curve.name in ("sft", "dft") else "false")
    assert text.count('class="sketch"') == len(curves)
    assert len(data_of(text, "bars")["designs"]) == len(curves)


def test_the_page_of_a_few_has_no_small_plots_and_says_what_was_changed(
    curves: dict[str, Curve], tmp_path: Path
) -> None:
    change = "target.reliance.alpha=0.5"
    text = written(tmp_path / "lens.html", [curves[name] for name in FEW], WORLD, changes=[change])
    well_formed(text)
    assert 'class="sketch"' not in text
    assert "What sft, dft and kd teach" in text
    assert f"<code>{change}</code>" in text
    assert "On demonstrations" not in text
    held = data_of(text, "bars")
    step = held["p"].index(0.3)
    close(held["designs"][2]["targets"][step], WORLD.teacher, within=1e-4)
    close(held["teacher"], WORLD.teacher, within=1e-4)


def test_the_page_loads_nothing(curves: dict[str, Curve], tmp_path: Path) -> None:
    text = written(tmp_path / "lens.html", [curves["sft"]], WORLD)
    assert not re.search(r"""<(script|link|img|iframe)\b[^>]*\b(src|href)\s*=""", text)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    assert "@import" not in text


def demonstration(text: str, **changes: Any) -> Demonstrations:
    told: dict[str, Any] = {
        "p": 0.25,
        "nll": -math.log(0.25),
        "prior": 0.5,
        "alternatives": (Alternative(text, 0.125),),
    }
    tokens = (Token(text, supervised=False), Token(text, True, True, **told), Token("\n", True, False, **told))
    pulls = (Pull((-3.0, 0.5, 2.0)), Pull((1.0, 1.0, 1.0)))
    return Demonstrations(text, (TokenRow(7, tokens, (DesignReading(marks([text])[0], pulls),)),), **changes)


def test_hostile_text_stays_text(curves: dict[str, Curve], tmp_path: Path) -> None:
    curve = trace(load_design("sft"), marks([EVIL])[0], EVIL, WORLD)
    shown = demonstration(EVIL, left_out=((EVIL, EVIL),))
    text = written(tmp_path / "lens.html", [curve], WORLD, changes=[EVIL], demonstrations=shown)
    assert EVIL not in text
    well_formed(text)
    assert data_of(text, "details")["rows"][0][0]["text"] == EVIL
    draw_tokens(demonstration("$x_$ 温度 " + EVIL), tmp_path / "tokens.png")


def test_tokens_carry_their_colour_their_outline_and_their_numbers(curves: dict[str, Curve], tmp_path: Path) -> None:
    text = written(tmp_path / "lens.html", [curves["sft"]], WORLD, demonstrations=demonstration("a"))
    wrong, right = re.findall(r'<span class="(token[^"]*)" tabindex="(-?\d)" data-token="([\d ]+)"[^>]*>', text)
    assert wrong == ("token wrong", "0", "0 0 0")
    assert right == ("token", "-1", "0 0 1")  # the arrow keys lead on
    assert "↵" in text
    assert "1 token made wrong" in text
    held = data_of(text, "details")["rows"][0][0]
    assert (held["p"], held["prior"], held["pulls"]) == (0.25, 0.5, [[-3.0, 0.5, 2.0]])


def test_colours_diverge_around_zero_and_are_clipped() -> None:
    assert shade(0.0)[1] == 0
    assert shade(1.0) == (shade(CLIP)[0], pytest.approx(shade(CLIP)[1] / CLIP))
    assert shade(-1.0)[1] == shade(1.0)[1]
    assert shade(-1.0)[0] != shade(1.0)[0]
    assert shade(50.0) == shade(CLIP)
    assert css_shade(-9.0).startswith("rgb(204 51 17 / 0.")


# The pictures


def coloured(path: Path) -> float:
    """Share of pixels that are neither grey nor white."""
    pixels = matplotlib.image.imread(path)[..., :3]
    return float(((pixels.max(-1) - pixels.min(-1)) > 0.1).mean())


def test_pictures_are_not_blank(curves: dict[str, Curve], tmp_path: Path) -> None:
    for count in (2, 9):
        draw_lens(list(curves.values())[:count], WORLD, tmp_path / f"{count}.png")
        assert coloured(tmp_path / f"{count}.png") > 0.005
    draw_tokens(demonstration("a long answer of some words"), tmp_path / "tokens.png")
    assert coloured(tmp_path / "tokens.png") > 0.005


def test_a_long_demonstration_is_cut_in_the_picture_only(tmp_path: Path) -> None:
    shown = demonstration("word " * 5000)
    draw_tokens(shown, tmp_path / "tokens.png")
    assert matplotlib.image.imread(tmp_path / "tokens.png").shape[0] < 6000


# The command


def test_lens_writes_its_files_and_says_where_and_what_next(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["lens", "target=dft,sft", "target.normalize=sequences", "out=pictures"]) == 0
    told = capsys.readouterr().out
    names = {path.name for path in (workdir / "pictures").iterdir()}
    assert names == {"lens.html", "lens.png", "lens_dft.png", "lens_sft.png"}
    for line in ("page     pictures/lens.html", "next     qtarget train -m target=dft,sft target.normalize=sequences"):
        assert line in told


BAD: dict[str, tuple[list[str], str]] = {
    "unknown design": (["target=dtf"], "unknown target 'dtf': did you mean 'dft'?"),
    "unknown part": (["target=dft", "target/residual=techer"], "did you mean 'teacher'"),
    "range": (["target=label_smoothing", "target.reliance.smoothing=2"], "smoothing must lie in [0, 1], got 2"),
    "override without a model": (["target=dft", "data.rows=3"], "with checkpoint=WHERE also"),
    "no key": (["dft"], "lens takes target=NAME"),
    "rows": (["target=dft", "checkpoint=tiny", "rows=0"], "rows must be a whole number of at least 1, got '0'"),
    "no value": (["target=dft", "checkpoint="], "checkpoint= needs a value"),
    "no such checkpoint": (["target=dft", "checkpoint=outputs/nowhere"], "no model at outputs/nowhere"),
    "model beside checkpoint": (["target=dft", "checkpoint=tiny", "model=tiny"], "leave model=… away"),
    "no teacher": (["target=kd", "checkpoint=tiny", "data.rows=8"], "kd: this target needs"),
    "unwritable": (["target=dft", "out=taken/pictures"], "Set out=FOLDER to one you can write"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_said(case: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("a file")
    arguments, message = BAD[case]
    assert qtarget_cli(["lens", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_requests_are_read() -> None:
    request = read_request(["target=a,b", "target=a", "target.x=1", "checkpoint=c", "data.rows=9", "rows=2", "out=o"])
    assert (request.names, request.changes, request.overrides) == (("a", "b"), ("target.x=1",), ("data.rows=9",))
    assert (request.checkpoint, request.rows, request.out) == ("c", 2, Path("o"))
    assert read_request([]).names == ()
    assert set(every_name()) == set(DESIGNS)


# Demonstrations


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny model on half-wrong arithmetic."""
    folder = tmp_path_factory.mktemp("lens")
    small = ["data.rows=24", "data.noise.rate=0.5", "data.heldout_rows=2", "trainer.max_steps=3", "optim.lr=0.01"]
    place = [f"hydra.run.dir={folder / 'run'}", f"output_dir={folder}", "trainer.precision=32-true"]
    assert qtarget_cli(["train", "model=tiny", "data=arithmetic", "target=dft", *small, *place]) == 0
    return folder / "run"


def read(where: str | Path, *names: str, **given: Any) -> Demonstrations:
    return read_demonstrations(str(where), dict(zip(names, marks(names), strict=True)), **given)


TEACHER = ("reference@references.teacher=frozen", "references.teacher.name=tiny")


def test_the_numbers_on_the_page_are_those_of_the_loss(trained: Path, curves: dict[str, Curve], tmp_path: Path) -> None:
    """linear_loss called by hand on the same rows, with the models loaded anew."""
    names = ("target_sft", "one_minus_prior", "talr", "psft")
    shown = read(trained, *names, overrides=TEACHER, rows=5)
    text = written(tmp_path / "lens.html", [curves[name] for name in names], WORLD, demonstrations=shown)
    held = [token for row in data_of(text, "details")["rows"] for token in row]

    plan = make_plan(run_config(str(trained)))
    rows = sorted(plan.prepared.train, key=lambda example: not any(example.wrong))[:5]
    batch = Collate(int(plan.tokenizer.pad_token_id))(rows)
    policy = provide.load_policy(provide.ModelSource(str(trained / "checkpoint")), len(plan.tokenizer)).eval()
    start = provide.load_policy(provide.ModelSource("tiny"), len(plan.tokenizer)).eval()
    with torch.no_grad():
        hidden = policy(batch.input_ids)
        references = {
            role: qtarget.Reference.hidden(model(batch.input_ids).flatten(0, 1), model.head)
            for role, model in {"prior": start, "teacher": start, "old": policy}.items()
        }
        given: Any = {"references": references, "columns": batch.columns, "progress": 1.0}
        for place, name in enumerate(names):
            out = linear_loss(hidden, policy.head, batch.labels, load_design(name), **given)
            pulls = [token["pulls"][place] for token in held]
            expected = torch.stack([out.trust, out.reliance, out.weight], dim=1)
            torch.testing.assert_close(torch.tensor(pulls), expected, atol=1e-5, rtol=1e-4)
            close([token["nll"] for token in held], out.nll.tolist(), within=1e-5)
    label = batch.labels[batch.labels != IGNORE][:, None]
    for key, model in (("p", policy), ("prior", start)):
        probabilities = model.head.logits(model(batch.input_ids)[batch.labels != IGNORE], torch.float32).softmax(-1)
        close([token[key] for token in held], probabilities.gather(1, label).squeeze(1).tolist(), within=1e-6)
    assert any(abs(token["p"] - token["prior"]) > 1e-3 for token in held)  # the prior is where training started


def test_rows_with_noise_come_first_whole_and_with_their_wrong_tokens(trained: Path) -> None:
    shown = read(trained, "sft", rows=14)
    noisy = [bool(row.wrong) for row in shown.rows]
    assert noisy == [True] * 12 + [False] * 2
    examples = {example.row: example for example in make_plan(run_config(str(trained))).prepared.train}
    for row in shown.rows:
        example = examples[row.number]
        assert "".join(token.text for token in row.tokens) == tiny_tokenizer().decode(list(example.input_ids))
        assert row.prompt.endswith("<|assistant|>")
        assert row.wrong == sum(example.wrong)
        assert [len(reading.pulls) for reading in row.readings] == [sum(example.supervised)]
        assert row.supervised[-1].text == "<|end|>"


def test_alternatives_are_the_likeliest_other_tokens(trained: Path) -> None:
    for token in read(trained, "sft", rows=2).rows[0].supervised:
        values = [other.p for other in token.alternatives]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert token.p + sum(values) <= 1


def test_a_model_that_is_no_run_is_read_with_the_configuration_given() -> None:
    shown = read("tiny", "sft", "dft", overrides=["data.rows=8", "reference@references.prior=none"], rows=2)
    assert [reading.mark.label for reading in shown.rows[0].readings] == ["sft", "dft"]
    assert shown.rows[0].supervised[0].prior is None
    for token, pull in zip(shown.rows[0].supervised, shown.rows[0].readings[1].pulls, strict=True):
        close(pull.trust, token.p, within=1e-6)


def test_designs_that_cannot_be_run_are_left_out_only_where_none_was_named(trained: Path) -> None:
    shown = read(trained, "sft", "kd", rows=1, lenient=True)
    assert [reading.mark.label for reading in shown.rows[0].readings] == ["sft"]
    ((name, why),) = shown.left_out
    assert name == "kd"
    assert "reference@references.teacher=frozen references.teacher.name=MODEL" in why
    with pytest.raises(qtarget.QTargetError, match=r"kd: .*reference@references\.teacher=frozen"):
        read(trained, "sft", "kd", rows=1)


def test_a_runs_configuration_takes_overrides_and_refuses_others(trained: Path, workdir: Path) -> None:
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}?", "completion": EVIL + " π 3"}) + "\n" for n in range(9))
    )
    overrides = [
        "data.source.path=rows.jsonl",
        "data=jsonl",
        "data.rows=4",
        "data/noise=wrong_answer",
        "data.noise.rate=0.5",
    ]
    cfg = run_config(str(trained), overrides)
    assert (cfg.data["source"]["path"], cfg.data["rows"], cfg.data["noise"]["rate"]) == ("rows.jsonl", 4, 0.5)
    assert cfg.reference_name("prior") == "tiny"
    shown = read(trained, "sft", overrides=overrides, rows=2)
    assert EVIL + " π" in "".join(token.text.replace("\ufffd", "") for token in shown.rows[0].supervised)
    for override, message in (
        ("data.rowz=3", "unknown key 'data.rowz'.*did you mean 'rows'"),
        ("nothing.at=3", "unknown key 'nothing.at'"),
        ("experiment=demo", "experiment=demo can't be changed"),
        ("data=jsonk", "unknown data 'jsonk'"),
    ):
        with pytest.raises(qtarget.QTargetError, match=message):
            run_config(str(trained), [override])


def test_the_command_shows_a_run(trained: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["lens", "target=sft,dft", f"checkpoint={trained}", "rows=2"]) == 0
    assert "outputs/lens/tokens.png" in capsys.readouterr().out
    text = (workdir / "outputs" / "lens" / "lens.html").read_text(encoding="utf-8")
    well_formed(text)
    assert str(trained.parent) not in text
    assert text.count('class="reading"') == 4
    assert len(data_of(text, "details")["rows"]) == 2


def test_letters_of_several_tokens_appear_once() -> None:
    tokenizer = tiny_tokenizer()
    text = "a π b<|end|>温"
    found = pieces(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    assert "".join(found).replace("\ufffd", "") == text
    assert found[:5] == ["a", " ", "\ufffd", "π", " "]


def test_the_lens_of_curves_loads_no_model() -> None:
    import subprocess
    import sys

    probe = (
        "import sys; from qtarget.lens.curves import *; from qtarget.lens.command import traced, read_request; "
        "traced(read_request(['target=sft']), World.default()); print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_points_are_plain_data(curves: dict[str, Curve]) -> None:
    assert isinstance(curves["sft"].points[0], CurvePoint)
    assert json.dumps(template_values([curves["sft"]], WORLD)["bars"])
    assert "What sft teaches" in render(TEMPLATE, template_values([curves["sft"]], WORLD))

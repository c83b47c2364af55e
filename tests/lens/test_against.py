"""`qtarget lens --against`: what differs between designs, against the formulas and against the loss called by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_lens import WORLD, close, coloured, data_of, trained, well_formed  # noqa: F401 - a fixture of these tests
from worlds import load_design

import qtarget
from qtarget.cli import run as qtarget_cli
from qtarget.data.batch import Collate
from qtarget.lens.against import CurveDifference, difference_panels
from qtarget.lens.chosen import Against
from qtarget.lens.command import read_request
from qtarget.lens.curves import STOPS, Curve, marks, sweep, trace
from qtarget.lens.differences import TokenDifference
from qtarget.lens.page import write_lens
from qtarget.lens.reading import read_demonstrations
from qtarget.lens.token_differences import check_room
from qtarget.math.loss import IGNORE, dense_loss
from qtarget.model import provide
from qtarget.run.plan import make_plan
from qtarget.run.stored_config import run_config

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
NAMES = ("dft", "kd", "label_smoothing", "iw_sft", "sft")


@pytest.fixture(scope="module")
def curves() -> dict[str, Curve]:
    return {mark.label: trace(load_design(mark.label), mark, "", WORLD) for mark in marks(NAMES)}


def beside(curves: dict[str, Curve], name: str, other: str = "sft") -> CurveDifference:
    return CurveDifference(curves[name], curves[other])


# Curves


def test_differences_of_curves_are_those_of_the_formulas(curves: dict[str, Curve]) -> None:
    """DFT's gradient is p·(1 − p), plain SFT's 1 − p; a teacher's target is the teacher, plain SFT's the label."""
    for p, dft, kd in zip(sweep(), beside(curves, "dft").points, beside(curves, "kd").points, strict=True):
        close((dft.label, dft.distance), (p * (1 - p) - (1 - p), (1 - p) ** 2))
        close((dft.gradient, dft.weight), (p, 1))
        close((kd.label, kd.distance), (WORLD.teacher[0] - 1, 1 - WORLD.teacher[0]))
        close((kd.gradient, kd.weight), ((WORLD.teacher[0] - p) / (1 - p), 1.0), within=1e-6)


def test_step_sizes_are_divided(curves: dict[str, Curve]) -> None:
    """Importance weighting steps by w = p/π_0."""
    for p, point in zip(sweep(), beside(curves, "iw_sft").points, strict=True):
        close((point.weight, point.gradient), (p / WORLD.prior[0],) * 2)


@pytest.mark.parametrize(("name", "other"), [("dft", "sft"), ("kd", "label_smoothing")])
def test_targets_are_subtracted_entry_by_entry_and_turn_their_sign(
    name: str, other: str, curves: dict[str, Curve]
) -> None:
    there, back = beside(curves, name, other), beside(curves, other, name)
    for index, (row, reverse) in enumerate(zip(there.targets, back.targets, strict=True)):
        pairs = zip(curves[name].points[index].target, curves[other].points[index].target, strict=True)
        assert row == tuple(a - b for a, b in pairs)
        assert row == tuple(-entry for entry in reverse)


def test_no_ratio_is_made_where_nothing_is_pulled() -> None:
    """A teacher who agrees with the policy leaves the label where it is."""
    still, moved = (trace(load_design(name), marks([name])[0], "", WORLD) for name in ("kd", "sft"))
    at_rest = min(range(len(sweep())), key=lambda index: abs(sweep()[index] - WORLD.teacher[0]))
    assert still.points[at_rest].pull != 0  # the sweep passes near the teacher's p(y), not through it
    assert (
        TokenDifference(0.4, 0.4, None, 1.0).in_words("kd") == "0.40 more on the label than kd, which kd does not pull"
    )
    assert TokenDifference(0.0, 0.0, None, 1.0).in_words("kd") == "as much on the label as kd, which neither pulls"
    assert CurveDifference(moved, moved).points[0].gradient == 1


WORDS = {
    (-0.9, 0.05): "0.90 less on the label than sft, pulled 0.05 times as hard",
    (0.25, 1.5): "0.25 more on the label than sft, pulled 1.5 times as hard",
    (-0.4, -1.0): "0.40 less on the label than sft, pulled the other way, as hard",
    (-0.4, 0.0): "0.40 less on the label than sft, which sft alone pulls",
    (0.001, 1.0): "as much on the label as sft, pulled as hard",
}


@pytest.mark.parametrize("case", WORDS)
def test_the_sign_is_said_in_words(case: tuple[float, float]) -> None:
    label, gradient = case
    assert TokenDifference(label, abs(label), gradient, 1.0).in_words("sft") == WORDS[case]


def test_plots_hold_the_differences_and_leave_out_what_is_no_number(curves: dict[str, Curve]) -> None:
    label, distance, gradient, weight = difference_panels([beside(curves, "dft"), beside(curves, "kd")])
    assert [panel.reference for panel in (label, distance, gradient, weight)] == [0, 0, 1, 1]
    for panel, values in ((label, [-((1 - p) ** 2) for p in sweep()]), (gradient, list(sweep()))):
        close(panel.lines[0].values, values, within=1e-5)
        assert panel.lines[0].mark == curves["dft"].mark


# The page and the command


def test_the_page_has_the_differences_as_bars_and_in_a_table(curves: dict[str, Curve], tmp_path: Path) -> None:
    differences = [beside(curves, name) for name in ("dft", "kd")]
    write_lens(list(curves.values()), WORLD, tmp_path / "lens.html", differences=differences)
    text = (tmp_path / "lens.html").read_text(encoding="utf-8")
    well_formed(text)
    held = data_of(text, "bars")
    for shown, difference in zip(held["differences"], differences, strict=True):
        for got, expected in zip(shown["targets"], difference.targets, strict=True):
            close(got, expected, within=1e-4)
    for p in STOPS.values():
        assert f"<td>{p * (1 - p) - (1 - p):+.3f}</td>" in text
        assert beside(curves, "dft").at(p).in_words("sft") in text
    assert text.count("data-differences=") == 2


def test_lens_writes_differences_and_says_them(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["lens", "target=dft,sft", "--against", "sft", "out=o"]) == 0
    told = capsys.readouterr().out
    assert {path.name for path in Path("o").iterdir()} == {
        "lens.html",
        "lens.png",
        "differences.png",
        "lens_dft.png",
        "lens_sft.png",
    }
    assert "against  dft − sft: at p(y) = 0.05: 0.90 less on the label than sft, pulled 0.05 times as hard;" in told
    assert "sft − sft" not in told
    assert coloured(Path("o/differences.png")) > 0.001


def test_what_follows_against_changes_that_design_alone() -> None:
    request = read_request(["target=label_smoothing", "target.x=1", "--against", "dft", "target.y=2", "out=o"])
    assert (request.names, request.changes, request.out) == (("label_smoothing",), ("target.x=1",), Path("o"))
    assert request.against == Against("dft", ("target.y=2",), "dft y=2")
    assert request.labels == ("label_smoothing", "dft y=2")
    own = read_request(["target=dft", "target.x=1", "--against=target=dft"]).against
    assert own == Against("dft", (), "dft as shipped")
    assert read_request(["target=sft,dft", "--against", "sft"]).labels == ("sft", "dft")


def test_a_design_is_set_against_itself_with_another_value(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smoothing = "target.reliance.smoothing"
    given = ["target=label_smoothing", f"{smoothing}=0.3", "--against", "label_smoothing", f"{smoothing}=0.2"]
    assert qtarget_cli(["lens", *given]) == 0
    told = capsys.readouterr().out
    size = len(WORLD.tokens)
    expected = 0.1 * (size - 1) / size
    assert f"label_smoothing − label_smoothing reliance.smoothing=0.2: at p(y) = 0.05: {expected:.2f} less" in told


BAD = {
    "nothing": (["target=dft", "--against"], "--against needs a design, such as --against sft"),
    "unknown": (["target=dft", "--against", "stf"], "unknown target 'stf': did you mean 'sft'?"),
    "itself": (["target=dft", "--against", "dft"], "a design has no difference to itself"),
    "twice": (["target=dft", "--against", "sft", "--against", "kd"], "names one design, and stands twice"),
    "several": (["target=dft", "--against", "sft,kd"], "--against names one design"),
    "its part": (["target=dft", "--against", "kd", "target/residual=techer"], "did you mean 'teacher'"),
    "a teacher": (["target=dft", "--against", "kd", "checkpoint=tiny", "data.rows=8"], "kd: this target needs"),
    "a teacher, of all": (["--against", "kd", "checkpoint=tiny", "data.rows=8"], "kd: this target needs"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_set_against_is_said(case: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = BAD[case]
    assert qtarget_cli(["lens", *arguments]) == 2
    assert message in capsys.readouterr().err


# Tokens of a model


def by_hand(folder: Path, rows: int, names: tuple[str, ...]) -> tuple[Any, dict[str, Any], dict[str, torch.Tensor]]:
    """Labels, losses and whole targets p − ∂L/∂z of the run's first rows, by autograd through the dense loss."""
    plan = make_plan(run_config(str(folder)))
    some = sorted(plan.prepared.train, key=lambda example: not any(example.wrong))[:rows]
    batch = Collate(int(plan.tokenizer.pad_token_id))(some)
    policy = provide.load_policy(provide.ModelSource(str(folder / "checkpoint")), len(plan.tokenizer)).eval()
    supervised = batch.labels != IGNORE
    with torch.no_grad():
        logits = policy.head.logits(policy(batch.input_ids)[supervised], torch.float32).double()
    outs, targets = {}, {}
    for name in names:
        leaf = logits.clone().requires_grad_()
        outs[name] = dense_loss(leaf, batch.labels[supervised], load_design(name))
        outs[name].total.backward()
        assert leaf.grad is not None
        targets[name] = logits.softmax(-1) - leaf.grad
    return batch.labels[supervised], outs, targets


def test_differences_of_tokens_are_those_of_the_losses_gradients(trained: Path, tmp_path: Path) -> None:  # noqa: F811
    names = ("dft", "label_smoothing")
    labels = ("dft", "label_smoothing", "sft")
    given = dict(zip(labels, marks(labels), strict=True))
    shown = read_demonstrations(str(trained), given, rows=3, against=Against("sft", (), "sft"))
    label, outs, targets = by_hand(trained, 3, labels)
    for place, name in enumerate(names):
        differences = [row.differences[place] for row in shown.rows]
        assert {one.name for one in differences} == {f"{name} − sft"}
        tokens = [token for one in differences for token in one.tokens]
        delta = targets[name] - targets["sft"]
        close([token.label for token in tokens], delta.gather(1, label[:, None])[:, 0].tolist(), within=1e-5)
        close([token.distance for token in tokens], (delta.abs().sum(-1) / 2).tolist(), within=1e-5)
        close([token.gradient for token in tokens], (outs[name].trust / outs["sft"].trust).tolist(), within=1e-4)
        close([token.weight for token in tokens], (outs[name].weight / outs["sft"].weight).tolist(), within=1e-4)
        others = delta.scatter(1, label[:, None], 0.0).abs().sort(dim=-1, descending=True).values[:, :3]
        close([abs(one.p) for token in tokens for one in token.largest], others.flatten().tolist(), within=1e-5)
    curves = [trace(load_design(name), mark, "", WORLD) for name, mark in given.items()]
    pairs = [CurveDifference(curve, curves[-1]) for curve in curves[:-1]]
    write_lens(curves, WORLD, tmp_path / "lens.html", demonstrations=shown, differences=pairs)
    text = (tmp_path / "lens.html").read_text(encoding="utf-8")
    well_formed(text)
    first = data_of(text, "details")["rows"][0][0]
    assert shown.rows[0].differences[0].tokens[0].in_words("sft") in first["differences"][0][0]
    assert len(first["pulls"]) == 3
    assert len(first["differences"]) == 2


def test_the_design_that_others_are_set_against_takes_its_own_changes(trained: Path) -> None:  # noqa: F811
    against = Against("label_smoothing", ("target.reliance.smoothing=0.4",), "smoother")
    shown = read_demonstrations(
        str(trained),
        dict(zip(("label_smoothing", "smoother"), marks(("label_smoothing", "smoother")), strict=True)),
        changes=["target.reliance.smoothing=0.1"],
        rows=1,
        against=against,
    )
    (difference,) = shown.rows[0].differences
    size = len(make_plan(run_config(str(trained))).tokenizer)
    close([token.label for token in difference.tokens], [0.3 * (size - 1) / size] * len(difference.tokens), within=1e-5)


def test_too_many_whole_targets_are_refused_with_the_rows_that_fit() -> None:
    labels = torch.zeros(8, 1024, dtype=torch.int64)
    batch: Any = type("Rows", (), {"labels": labels})
    check_room(batch, 2**15)
    with pytest.raises(qtarget.QTargetError, match=r"8192 supervised tokens × 262144 entries are 8.6 GB.*set rows=4"):
        check_room(batch, 2**18)

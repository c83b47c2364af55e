"""What a run records for the lens: the numbers of its loss, at every step asked for, and the page that reads them."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from test_against import by_hand
from test_lens import EVIL, close, coloured, data_of, well_formed
from training import eight_rows, live, module
from worlds import load_design

import qtarget
from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config
from qtarget.config.identity import config_hash
from qtarget.data.example import Example
from qtarget.lens.over_training import evenly, read_run
from qtarget.lens.training_page import write_training
from qtarget.math.loss import IGNORE, dense_loss
from qtarget.model.builtin import tiny_tokenizer
from qtarget.record.record import Record
from qtarget.record.trackers import NoTracker
from qtarget.train.lens_record import LensRecorder, LensRows

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
SMALL = ["model=tiny", "data=arithmetic", "target=dft", "data.rows=24", "data.noise.rate=0.5", "data.heldout_rows=2"]
SMALL += ["trainer.max_steps=5", "optim.lr=0.01", "trainer.precision=32-true", "trainer.accelerator=cpu"]
SMALL += ["trainer.eval_every=0", "eval.new_tokens=2", "data.workers=1"]


def train(folder: Path, *more: str) -> int:
    return qtarget_cli(["train", *SMALL, f"hydra.run.dir={folder}", f"output_dir={folder.parent}", *more])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    assert train(folder / "run", "lens.every=2", "lens.rows=3", "lens.top=4") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def unrecorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unrecorded")
    assert train(folder / "run") == 0
    return folder / "run"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "lens.jsonl").read_text().splitlines()]


# The record


def test_every_step_asked_for_is_recorded_the_first_and_the_last_too(recorded: Path) -> None:
    first, *steps = lines(recorded)
    assert [step["step"] for step in steps] == [0, 2, 4, 5]
    assert len(first["rows"]) == 3
    assert all(any(kind == 2 for _, kind in row["tokens"]) for row in first["rows"])  # those with noise come first


def test_the_last_line_is_what_the_trained_model_makes_of_the_tokens(recorded: Path) -> None:
    """p and Q = p − ∂L/∂z by autograd through the dense loss of the saved model; trust, γ and w of its statistics."""
    label, outs, targets = by_hand(recorded, 3, ("dft", "sft"))
    tokens = [token for row in lines(recorded)[-1]["rows"] for token in row]
    p = torch.tensor([token["p"] for token in tokens], dtype=torch.float64)
    close(p.tolist(), (-outs["dft"].nll).exp().tolist(), within=1e-5)
    close([token["q"] for token in tokens], targets["dft"].gather(1, label[:, None])[:, 0].tolist(), within=1e-5)
    close([token["trust"] for token in tokens], p.tolist(), within=1e-5)  # dft: γ = p
    close([token["reliance"] for token in tokens], p.tolist(), within=1e-5)
    assert {token["weight"] for token in tokens} == {1.0}
    policy = (targets["dft"] - p[:, None] * targets["sft"]) / (1 - p[:, None])  # dft: Q = p_y·δ + (1 − p_y)·p
    for place, token in enumerate(tokens):
        ids = [other[0] for other in token["top"]]
        close([other[1] for other in token["top"]], policy[place, ids].tolist(), within=1e-5)
        close([other[2] for other in token["top"]], targets["dft"][place, ids].tolist(), within=1e-5)
        others = policy[place].scatter(0, label[place], -1.0)
        close(sorted(other[1] for other in token["top"]), others.topk(4).values.flip(0).tolist(), within=1e-5)


@pytest.mark.parametrize("design", ["kd", "kd_support", "talr", "psft", "unlikelihood", "gem"])
def test_any_design_is_recorded_as_its_loss_is(design: str) -> None:
    """Teachers, references cut to a top k, parts that look at the step, the old policy, signed targets."""
    rows = LensRows.first(eight_rows().train, tiny_tokenizer(), rows=3, tokens=100, top=6)
    trained = module(design, **live(design))
    trained.progress_at = lambda step: 0.5  # type: ignore[method-assign]
    trained.progress = lambda: 0.5  # type: ignore[method-assign]
    got = [token for row in rows.read(trained, 7)["rows"] for token in row]
    trained.policy.eval()
    hidden = trained.policy(rows.batch.input_ids)
    logits = trained.policy.head.logits(hidden, torch.float32).detach().double().requires_grad_()
    given = trained._loss_inputs(rows.batch)
    out = dense_loss(logits, rows.batch.labels, load_design(design), **given)
    out.total.backward()
    assert logits.grad is not None
    supervised = rows.batch.labels != IGNORE
    policy = logits.softmax(-1)[supervised].detach()
    target = policy - logits.grad[supervised]
    label = rows.batch.labels[supervised]
    close([token["q"] for token in got], target.gather(1, label[:, None])[:, 0].tolist(), within=2e-5)
    close([token["trust"] for token in got], out.trust.tolist(), within=2e-4)
    for place, token in enumerate(got):
        for one, p, q in token["top"]:
            close((p, q), (float(policy[place, one]), float(target[place, one])), within=2e-5)
        size = torch.maximum(policy, target.abs())[place].scatter(0, label[place], -1.0)
        close([max(p, abs(q)) for _, p, q in token["top"]], size.topk(6).values.tolist(), within=2e-5)


def test_recording_changes_no_number_and_no_name_of_a_run(recorded: Path, unrecorded: Path) -> None:
    assert (recorded / "checkpoint/model.safetensors").read_bytes() == (
        unrecorded / "checkpoint/model.safetensors"
    ).read_bytes()
    assert (recorded / "samples.jsonl").read_bytes() == (unrecorded / "samples.jsonl").read_bytes()
    assert not (unrecorded / "lens.jsonl").exists()
    plain = config_hash(compose_config("train", SMALL))
    assert config_hash(compose_config("train", [*SMALL, "lens.every=3", "lens.top=9"])) == plain


def test_reading_rows_draws_no_random_number_and_leaves_the_mode() -> None:
    trained = module("dft")
    rows = LensRows.first(eight_rows().train, tiny_tokenizer(), rows=2, tokens=4, top=2)
    before = torch.random.get_rng_state()
    line = rows.read(trained, 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert trained.policy.training
    assert trained.measures == ()
    assert json.loads(json.dumps(line))["step"] == 0


def test_of_a_long_row_the_tokens_around_the_first_wrong_one_are_recorded() -> None:
    text = tiny_tokenizer()("abcdefghij", add_special_tokens=False)["input_ids"]
    wrong = [False] * 7 + [True, True, False]
    example = Example(text, [False, False] + [True] * 8, {"wrong": wrong}, row=4)
    (row,) = LensRows([example], tiny_tokenizer(), 4, 2).described()["rows"]
    assert row == {"row": 4, "tokens": [["abcde", 0], ["f", 1], ["g", 1], ["h", 2], ["i", 2], ["j", 0]]}
    right = Example(text, [True] * 10, {"wrong": [False] * 10}, row=0)
    (row,) = LensRows([right], tiny_tokenizer(), 4, 2).described()["rows"]
    assert row["tokens"] == [["a", 0], ["b", 1], ["c", 1], ["d", 1], ["e", 1], ["fghij", 0]]


def test_a_run_that_goes_on_continues_its_file_where_the_state_was_saved(tmp_path: Path) -> None:
    record = Record(tmp_path, NoTracker())
    info = {"config_hash": "x", "name": "x"}
    record.start(info, {})
    for step in (0, 1):
        record.lens({"step": step})
    saved = record.offsets()
    record.lens({"step": 2})
    record.start(info, {}, saved)
    record.lens({"step": 2})
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]
    record.start(info, {}, {name: value for name, value in saved.items() if name != "lens_bytes"})  # an earlier build's
    assert not (tmp_path / "lens.jsonl").exists()
    record.lens({"step": 3})
    record.start(info, {})
    assert not (tmp_path / "lens.jsonl").exists()


def test_a_run_that_goes_on_with_other_rows_is_refused(tmp_path: Path) -> None:
    record = Record(tmp_path, NoTracker())
    record.start({"config_hash": "x", "name": "x"}, {})
    some = {"rows": 2, "tokens": 4, "top": 2}
    first = LensRows.first(eight_rows().train, tiny_tokenizer(), **some)
    for _ in range(2):
        LensRecorder(first, record, 1, nullcontext)._begin()
    assert len(lines(tmp_path)) == 1
    other = LensRows.first(eight_rows().train, tiny_tokenizer(), **{**some, "rows": 3})
    with pytest.raises(qtarget.QTargetError, match=r"other tokens than lens\.rows and lens\.tokens .* resume=never"):
        LensRecorder(other, record, 1, nullcontext)._begin()


# The page and the picture


def test_the_page_has_every_step_of_every_token(recorded: Path, tmp_path: Path) -> None:
    shown = read_run(recorded)
    write_training(shown, tmp_path / "training.html")
    text = (tmp_path / "training.html").read_text(encoding="utf-8")
    well_formed(text)
    assert "What dft teaches over training" in text
    assert str(recorded.parent) not in text
    data = data_of(text, "data")
    _, *steps = lines(recorded)
    assert data["steps"] == [0, 2, 4, 5]
    for row, tokens in enumerate(data["rows"]):
        for place, token in enumerate(tokens):
            for key in ("p", "q", "trust", "reliance", "weight"):
                assert token[key] == [step["rows"][row][place][key] for step in steps]
            for at, step in enumerate(steps):
                held = {(other["text"], other["p"][at], other["q"][at]) for other in token["others"]}
                stored = step["rows"][row][place]["top"]
                likeliest = max(stored, key=lambda other: other[1])
                assert any(p == likeliest[1] and q == likeliest[2] for _, p, q in held)
    assert text.count('class="token') == sum(map(len, data["rows"]))


def test_the_page_loads_nothing_and_keeps_hostile_text_as_text(recorded: Path, tmp_path: Path) -> None:
    folder = copied(recorded, tmp_path)
    first, *steps = lines(folder)
    first["rows"][0]["tokens"][0][0] = EVIL
    first["rows"][0]["tokens"][1][0] = EVIL
    steps[0]["texts"] = dict.fromkeys(steps[0]["texts"], EVIL)
    rewrite(folder, [first, *steps])
    write_training(read_run(folder), tmp_path / "training.html")
    text = (tmp_path / "training.html").read_text(encoding="utf-8")
    assert EVIL not in text
    well_formed(text)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert data_of(text, "data")["rows"][0][0]["text"] == EVIL


def test_the_command_writes_page_and_picture(recorded: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["lens", str(recorded), "out=pictures"]) == 0
    told = capsys.readouterr().out
    assert {path.name for path in Path("pictures").iterdir()} == {"training.html", "training.png"}
    assert "page     pictures/training.html" in told
    assert f"next     qtarget lens target=dft checkpoint={recorded}" in told
    assert coloured(Path("pictures/training.png")) > 0


def test_steps_of_the_picture_are_spread_evenly() -> None:
    assert evenly(3, 8) == [0, 1, 2]
    assert evenly(50, 8) == [0, 7, 14, 21, 28, 35, 42, 49]
    assert len(set(evenly(9, 8))) == 8


# What is refused


def copied(folder: Path, place: Path) -> Path:
    shutil.copytree(folder, place / "copied", ignore=shutil.ignore_patterns("checkpoint"))
    return place / "copied"


def rewrite(folder: Path, content: list[dict[str, Any]]) -> None:
    (folder / "lens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert qtarget_cli(["lens", *arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return " ".join(error.split())


def test_a_run_without_a_record_is_answered_with_the_key(
    unrecorded: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(str(unrecorded), capsys=capsys)
    assert "has no lens.jsonl" in said
    assert "Train it with lens.every=10, with another output_dir=FOLDER, as a finished run isn't trained again" in said
    assert f"qtarget lens target=NAME checkpoint={unrecorded}" in said


def test_what_is_no_record_is_refused(recorded: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert "empty is no run: a run's folder holds result.json" in refused("empty", capsys=capsys)
    assert "outputs/nowhere is no run" in refused("outputs/nowhere", capsys=capsys)
    assert "takes out=FOLDER alone; got 'target'" in refused(str(recorded), "target=dft", capsys=capsys)
    assert "takes out=FOLDER alone; got '--against'" in refused(str(recorded), "--against", "sft", capsys=capsys)
    folder = copied(recorded, workdir)
    first, *steps = lines(folder)
    rewrite(folder, [first])
    assert "holds no step yet" in refused("copied", capsys=capsys)
    (folder / "lens.jsonl").write_text(json.dumps(first) + "\nnot json\n")
    assert "lens.jsonl, line 2 is no JSON" in refused("copied", capsys=capsys)
    for broken in ({**steps[0], "rows": []}, {"step": 1}, {**steps[0], "rows": [[{}]] * 3}):
        rewrite(folder, [first, broken])
        assert "isn't as training wrote it" in refused("copied", capsys=capsys)


def test_a_line_that_is_being_written_is_left_out(recorded: Path, tmp_path: Path) -> None:
    folder = copied(recorded, tmp_path)
    with (folder / "lens.jsonl").open("a") as file:
        file.write('{"step": 6, "te')
    assert read_run(folder).numbers == [0, 2, 4, 5]


@pytest.mark.parametrize("key", ["every", "rows", "tokens", "top"])
def test_a_key_below_one_is_refused(key: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["train", *SMALL, f"lens.{key}=0"]) == 2
    assert f"lens.{key}" in capsys.readouterr().err

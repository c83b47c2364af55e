"""A measure has one home: names, titles, units and better ends of the log, the evaluation, the table and the lens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import qtarget
from qtarget.compare.columns import COLUMNS
from qtarget.lens.token_table import LENS_MEASURES, TITLES
from qtarget.math.loss import TokenMeasures, linear_loss
from qtarget.measures import CONFIDENCE, HIT, MEASURES, direction
from qtarget.train.metrics import NAMES, OF_EARLIER_STATES, TokenMeans

EDIT = '''
    Measure(
        "miss",
        "missed",
        "",
        "min",
        "1 − p(y)",
        lambda scored: 1 - scored.view.label_logp.exp(),
        logged="target/miss",
        apart=True,
        evaluated=True,
        in_lens=True,
    ),
)
"""Of every loss'''
SCRIPT = """
    import json
    from pathlib import Path

    from qtarget.compare.columns import COLUMNS
    from qtarget.config.run_config import RunConfig
    from qtarget.lens.reading import read_demonstrations
    from qtarget.lens.token_table import TITLES, details
    from qtarget.lens.curves import marks
    from qtarget.measures import direction
    from qtarget.run.train import run_job

    overrides = ["model=tiny", "target=dft", "data=arithmetic", "data.rows=8", "data.heldout_rows=2", "name=a",
                 "trainer.batch_size=4", "trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.precision=32-true",
                 "trainer.log_every=1", "eval.new_tokens=2", "output_dir=" + str(Path.cwd())]
    folder = Path("run").absolute()
    result = run_job(RunConfig.compose(overrides), folder, {}, [])
    shown = read_demonstrations(str(folder / "checkpoint"), {"dft": marks(["dft"])[0]}, rows=1)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    print(json.dumps({
        "log": sorted({key for line in lines for key in json.loads(line)}),
        "metrics": result["metrics"],
        "columns": [[column.key, column.title, column.about] for column in COLUMNS],
        "better": direction("val/miss"),
        "titles": TITLES,
        "tokens": details(shown.rows[0]),
    }))
"""


def test_every_measure_is_an_attribute_of_what_a_loss_returns() -> None:
    assert {measure.name for measure in MEASURES} == {one.name for one in fields(TokenMeasures)} - {"others"}


def test_the_log_has_the_names_it_had() -> None:
    """A mean that is logged under another name is lost to whoever compares with runs of before."""
    assert sorted(NAMES) == sorted(OF_EARLIER_STATES)
    keys = [column.key for column in COLUMNS]
    assert {"test/nll", "test/kl_prior", "target/trust_noisy", "target/reliance_clean"} <= set(keys)
    assert (LENS_MEASURES, TITLES) == (("trust", "reliance", "weight"), ("trust", "γ", "w"))
    assert (direction("val/nll"), direction("val/kl_prior"), direction("val/accuracy")) == ("min", None, "max")


def test_means_of_a_state_that_names_none_are_those_of_its_order() -> None:
    sums = torch.arange(2.0 * len(OF_EARLIER_STATES), dtype=torch.float64).reshape(-1, 2) + 1
    earlier, named = TokenMeans(), TokenMeans()
    earlier.load_states([{"sums": sums}])
    expected = {name: float(row[0] / row[1]) for name, row in zip(OF_EARLIER_STATES, sums, strict=True)}
    assert earlier.compute() == expected
    named.load_states([earlier.state_dict()])
    assert named.compute() == expected


@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_what_is_measured_beside_is_numpys(chunk_size: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(7, 4, generator=generator), torch.randn(9, 4, generator=generator)
    labels = torch.tensor([0, 3, -100, 8, 8, 1, 2])
    design = qtarget.load_design("sft")
    out = linear_loss(hidden, head, labels, design, chunk_size=chunk_size, measures=(CONFIDENCE, HIT))
    p = (hidden @ head.T).softmax(-1)[labels != -100].numpy()
    torch.testing.assert_close(out.of("confidence"), torch.from_numpy(p.max(-1)))
    assert out.of("hit").tolist() == (p.argmax(-1) == labels[labels != -100].numpy()).astype(float).tolist()
    assert out.of("nll") is out.nll
    plain = linear_loss(hidden, head, labels, design, chunk_size=chunk_size)
    assert plain.others == {}
    assert all(torch.equal(plain.of(one.name), out.of(one.name)) for one in MEASURES if not one.needs_prior)


def test_nothing_supervised_is_nothing_measured() -> None:
    hidden, labels = torch.zeros(2, 4), torch.full((2,), -100)
    with pytest.warns(UserWarning, match="no supervised token"):
        out = linear_loss(hidden, torch.zeros(9, 4), labels, qtarget.load_design("sft"), measures=(HIT,))
    assert (out.of("hit").numel(), out.nll.numel()) == (0, 0)


@pytest.mark.slow
def test_a_measure_of_ones_own_is_one_edit(tmp_path: Path) -> None:
    """A copy of the sources with one entry more: log, evaluation, table and lens have it."""
    package = Path(qtarget.__file__).parent
    for folder, source in (("src/qtarget", package), ("conf", package.parents[1] / "conf")):
        shutil.copytree(source, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    home = tmp_path / "src" / "qtarget" / "measures.py"
    home.write_text(home.read_text(encoding="utf-8").replace('\n)\n"""Of every loss', EDIT), encoding="utf-8")
    (tmp_path / "work").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert {"target/miss", "target/miss_clean", "target/miss_noisy"} <= set(seen["log"])
    assert 0 < seen["metrics"]["test/miss"] < 1
    assert ["test/miss", "missed", "1 − p(y), on held-out demonstrations"] in seen["columns"]
    assert (seen["better"], seen["titles"]) == ("min", ["trust", "γ", "w", "missed"])
    for token in seen["tokens"]:
        assert token["pulls"][0][3] == pytest.approx(1 - token["p"], abs=1e-6)

"""`qtarget evaluate eval.engine=server`: a real server (transformers serve), and a folder of runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import completions_server
import pytest
from transformers.utils.import_utils import is_serve_available

from qtarget.cli import run as qtarget_cli

TRAIN = ["train", "model=tiny", "data=arithmetic", "data/noise=none", "data.rows=32", "data.heldout_rows=5"]
TRAIN += ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.eval_every=0", "eval.new_tokens=6"]
SERVE = f"{sys.executable} -m transformers.cli.transformers serve {{checkpoint}} --port {{port}} --device cpu"
"""It takes no token ids, and one request at a time: its seeds are torch's own generator's."""


def evaluated(run: Path, *given: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(record, samples) of a new evaluation."""
    before = set(Path("outputs/evaluations").glob("*"))
    assert qtarget_cli(["evaluate", f"checkpoint={run}", *given]) == 0
    (folder,) = set(Path("outputs/evaluations").glob("*")) - before
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return json.loads((folder / "result.json").read_text()), [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(not is_serve_available(), reason="transformers serve needs its extra: fastapi and openai")
def test_a_real_server_answers_as_the_local_engine_does(workdir: Path) -> None:
    assert qtarget_cli([*TRAIN, "trainer.max_steps=40", "optim.lr=1e-2"]) == 0
    (run,) = workdir.glob("outputs/runs/*")
    server = ["eval.engine=server", f'eval.server.command="{SERVE}"', "eval.server.prompts=text"]
    local, expected = evaluated(run)
    served, samples = evaluated(run, *server, "eval.server.in_flight=1")
    assert samples == expected  # texts, lengths, ends and verdicts
    assert served["metrics"] == pytest.approx(local["metrics"])
    assert all(sample["ended"] for sample in expected)
    assert (local["answers"], served["answers"]) == ("in refilled batches", "by a server")
    sampling = '{\\"do_sample\\": true, \\"eos_token_id\\": [256], \\"pad_token_id\\": 256}'
    extra = f'+eval.server.extra.generation_config="{sampling}"'
    drawn = ["eval.samples=3", "eval.temperature=1", extra, "eval.server.in_flight=1"]
    _, first = evaluated(run, *server, *drawn)
    assert all(sample["ended"] or sample["tokens"] == 6 for sample in first)
    _, second = evaluated(run, *server, *drawn, "name=again")
    assert len({sample["answer"] for sample in first if sample["row"] == first[0]["row"]}) == 3
    assert [sample["answer"] for sample in first] == [sample["answer"] for sample in second]


def test_a_folder_of_runs_has_a_server_for_each_and_one_that_fails_costs_itself_alone(
    workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = [*TRAIN, "trainer.max_steps=0"]
    assert qtarget_cli(["train", "-m", *small[1:], "seed=0,1"]) == 0
    script = f"{sys.executable} {completions_server.__file__}"
    server = ["eval.engine=server", f"eval.server.command=\"{script} {{port}} {{checkpoint}} ''\""]
    runs = sorted(workdir.glob("outputs/runs/*/"))
    capfd.readouterr()
    assert qtarget_cli(["evaluate", "checkpoint=outputs/runs", *server]) == 0
    logs = [path.read_text().splitlines()[0] for path in workdir.glob("outputs/evaluations/*/server.log")]
    assert sorted(logs) == [f"loading {run}/checkpoint no key" for run in runs]
    assert "2/2  outputs/runs/" in capfd.readouterr().out
    (runs[0] / "checkpoint/model.safetensors").unlink()
    assert qtarget_cli(["evaluate", "checkpoint=outputs/runs", *server, "eval.new_tokens=5"]) == 2
    said = capfd.readouterr().err
    assert f"1 of 2 runs could not be evaluated: outputs/runs/{runs[0].name}" in said
    assert len(list(workdir.glob("outputs/evaluations/*/result.json"))) == 4


def test_training_leaves_no_answers_to_a_server(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server = ["eval.engine=server", "eval.server.url=http://localhost:8000/v1"]
    assert qtarget_cli([*TRAIN, *server]) == 2
    assert "eval.engine=server answers for a checkpoint on disk: train with eval.engine=local" in capfd.readouterr().err
    assert not list(workdir.glob("outputs/runs/*/result.json"))

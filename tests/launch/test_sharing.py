"""Jobs of a multirun in one process share rows, checks and frozen models, and no number of theirs changes by it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch

from qtarget.config.composing import instantiate
from qtarget.config.run_config import RunConfig
from qtarget.data.module import Prepared
from qtarget.data.once import prepare_once
from qtarget.model import provide
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.policy import Policy
from qtarget.run.shared_models import release, shared, sharing

RUN = ["model=tiny", "trainer.max_steps=3", "data.rows=24", "data.heldout_rows=8", "eval.new_tokens=4"]
TEACHER = ["reference@references.teacher=frozen", "references.teacher.name=tiny"]
JOBS = [["target=dft"], ["target=asft"], ["target=target_sft"], ["target=kd"], ["target=kd", "seed=1"]]
MEASURED = {"train/seconds", "train/tokens_per_second", "train/peak_memory_gb"}
"""What a clock or the process says."""


def trained(words: list[str], folder: Path) -> dict[str, Any]:
    """By job: its logged rows, its closing metrics and its held-out losses, as one command leaves them."""
    subprocess.run([sys.executable, "-m", "qtarget", "train", *words, f"output_dir={folder}"], check=True)
    return dict(map(_of_run, folder.glob("*/*/result.json")))


def _of_run(result: Path) -> tuple[str, Any]:
    facts, folder = json.loads(result.read_text()), result.parent
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [{key: value for key, value in row.items() if key not in MEASURED | {"time"}} for row in rows]
    closing = {key: value for key, value in facts["metrics"].items() if key not in MEASURED}
    return facts["config_hash"], (logged, closing, (folder / "heldout_nll.jsonl").read_text(), facts["trust"])


def test_jobs_of_a_multirun_have_the_numbers_of_the_same_jobs_run_alone(warm: None, workdir: Path) -> None:
    together = trained(["-m", *RUN, *TEACHER, "target=dft,asft,target_sft,kd", "seed=0,1"], workdir / "together")
    for number, job in enumerate(JOBS):
        ((identity, alone),) = trained([*RUN, *TEACHER, *job], workdir / f"alone{number}").items()
        assert together[identity] == alone


def test_little_data_is_prepared_once_for_jobs_in_a_row(tmp_path: Path) -> None:
    def prepared(*changes: str) -> Prepared:
        cfg = RunConfig.compose(["model=tiny", "data.rows=8", "data.heldout_rows=4", *changes])
        return prepare_once(instantiate(cfg.data), tiny_tokenizer(), 1024, tmp_path)

    first = prepared()
    assert prepared("data.keep=false", "optim.lr=1") is first
    other = prepared("data.noise.rate=0.5")
    assert other is not first
    again = prepared()
    assert again is not first  # the last alone is kept
    assert [example.input_ids for example in again.train] == [example.input_ids for example in first.train]


def tiny() -> Policy:
    return provide.load_policy(provide.resolve("tiny"), 260)


def test_a_shared_model_is_one_object_while_jobs_share_and_gone_afterwards() -> None:
    with sharing():
        first = shared("key", tiny)
        with sharing():
            assert shared("key", tiny) is first
        assert shared("key", tiny) is first
        assert shared("another", tiny) is not first
    assert shared("key", tiny) is not first


def test_what_the_next_job_does_not_read_is_let_go() -> None:
    with sharing():
        kept, other = shared("kept", tiny), shared("other", tiny)
        release(but={"kept"})
        assert shared("kept", tiny) is kept
        assert shared("other", tiny) is not other


def test_a_shared_model_that_was_written_to_is_loaded_anew() -> None:
    with sharing():
        model = shared("key", tiny)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        with torch.no_grad():
            next(model.parameters()).add_(1)
        fresh = shared("key", tiny)
    assert fresh is not model
    assert torch.equal(next(fresh.parameters()), next(tiny().parameters()))


def test_a_job_reads_the_reference_of_the_job_before(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two jobs each with a policy, a prior and a teacher of one model: two policies and one frozen model."""
    from qtarget.cli import run as qtarget_cli

    loaded: list[Policy] = []
    original = provide.load_policy

    def counted(*arguments: Any, **options: Any) -> Policy:
        loaded.append(original(*arguments, **options))
        return loaded[-1]

    monkeypatch.setattr(provide, "load_policy", counted)
    prior = ["reference@references.prior=frozen", "checkpoint.save=false", "target=target_sft", "optim.lr=1e-3,1e-4"]
    assert qtarget_cli(["train", "-m", *RUN, *TEACHER, *prior]) == 0
    frozen = [model for model in loaded if not any(weight.requires_grad for weight in model.parameters())]
    assert (len(loaded), len(frozen)) == (3, 1)
    for mine, pristine in zip(frozen[0].parameters(), tiny().parameters(), strict=True):
        assert torch.equal(mine, pristine.to(mine.dtype))


def test_a_job_has_let_go_of_its_policy_when_the_next_one_loads_its_own(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever Python itself would look for cycles: trainer, module and policy lie in one."""
    from qtarget.cli import run as qtarget_cli

    policies: list[ref[Policy]] = []
    alive: list[int] = []
    original = provide.load_policy

    def watched(*arguments: Any, **options: Any) -> Policy:
        alive.append(sum(policy() is not None for policy in policies))
        policy = original(*arguments, **options)
        policies.append(ref(policy))
        return policy

    monkeypatch.setattr(provide, "load_policy", watched)
    jobs = ["reference@references.prior=none", "eval.kl_prior=false", "checkpoint.save=false", "seed=0,1,2"]
    gc.disable()
    try:
        assert qtarget_cli(["train", "-m", *RUN, *jobs]) == 0
    finally:
        gc.enable()
    assert alive == [0, 0, 0]

"""Streams on several devices: the rows of each step are those of one device, and a state is for any number of them."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from test_resume_ranks import Cut, Losses, NoJournal
from training import tiny_policy
from warm import fork_ranks
from worlds import load_design

from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Batch
from qtarget.data.lightning_data import StreamedData
from qtarget.data.module import DataConfig
from qtarget.data.sources.data_files import Files
from qtarget.data.stream import prepare_stream
from qtarget.model.builtin import tiny_tokenizer
from qtarget.run import fit, ranks
from qtarget.signals import Stop
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.optim import AdamW
from qtarget.train.resume_callback import ResumeCallback
from qtarget.train.resume_saved import last_state

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
ROWS, HELD, STEPS, CUT = 25, 3, 6, 3
"""Of the rows 3 are held out and 4 are too long: a pass of 18 ends within a step of 8, and in a group of 5."""
Seen = dict[str, Any]


class Labels(Losses):
    """By step, the losses of micro-batches, and the supervised tokens of every row."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        labels = [row[row >= 0].tolist() for row in batch.labels]
        self.rows[trainer.global_step] = [*self.rows[trainer.global_step][: -len(labels)], *labels]


def run(folder: Path, holder: str, world: int, end: int | None = None) -> Seen:
    """What this rank sees; from the state in the holder, where there is one."""
    settings = {"devices": world, "strategy": "ddp" if world > 1 else "auto", "accumulate": 4 // world}
    settings |= {"max_steps": STEPS, "accelerator": "cpu", "precision": "32-true"}
    cfg = RunConfig.compose(["model=tiny", *(f"trainer.{key}={value}" for key, value in settings.items())])
    source = Files(str(folder / "rows.jsonl"), streaming=True, shuffle_buffer=5)
    config = DataConfig(source, None, heldout_rows=HELD, max_length=60, truncation="drop", contamination="allow")
    stream = prepare_stream(config, tiny_tokenizer(), 1024, seed=3).stream
    assert stream
    data = StreamedData(stream, 256, batch_size=2, accumulate=4 // world, steps=STEPS)
    optim = AdamW(lr=1e-2, warmup=0.0)
    trained = QTargetModule(tiny_policy().train(), load_design("sft"), {}, optim, total_steps=STEPS)
    seen, state = Labels(end), last_state(folder / holder)
    callback = ResumeCallback(folder / holder, 1, NoJournal(), Stop(), state, when_stopped=True)
    with suppress(Cut), callback.save_when_stopped():
        fit.lightning_fit(fit.make_trainer(cfg, [seen, callback]), trained, data)
    if end is not None:
        return {}
    weights = torch.cat([tensor.detach().flatten() for tensor in trained.policy.parameters()])
    return {"losses": seen.losses, "rows": seen.rows, "weights": weights, "counts": dict(data.place(STEPS).counts)}


def on_this_rank(folder: str, jobs: list[tuple[str, str, int | None]]) -> None:
    fit.prepare_process(0)
    results = {}
    for name, holder, end in jobs:
        results[name] = run(Path(folder), holder, dist.get_world_size(), end)
        dist.barrier()
    torch.save(results, f"{folder}/{dist.get_rank()}.pt")


def together(both: list[dict[str, Seen]], name: str) -> Seen:
    """What two ranks have seen, as one: rank 0 has every other row of a step, from the first on."""
    first, second = (one[name] for one in both)
    rows = {
        step: [row for pair in zip(first["rows"][step], second["rows"][step], strict=True) for row in pair]
        for step in first["rows"]
    }
    losses = {step: (first["losses"][step] + second["losses"][step]) / 2 for step in first["losses"]}
    return first | {"rows": rows, "losses": losses}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """Runs on one device and on two: whole, cut short, and going on from states of their own and of each other."""
    folder = tmp_path_factory.mktemp("streams")
    rows = [{"prompt": f"{n}?", "completion": "y" * (100 if n in (4, 9, 10, 20) else n + 1)} for n in range(ROWS)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        one = {"one": run(folder, "one", 1)}
        run(folder, "of one", 1, CUT)
        shutil.copytree(folder / "of one", folder / "of one, on two")
        one["one on"] = run(folder, "of one", 1)
        jobs = [("two", "two", None), ("cut", "of two", CUT), ("two from one", "of one, on two", None)]
        fork_ranks(patch)
        ranks.start(2, on_this_rank, str(folder), jobs)
        one["one from two"] = run(folder, "of two", 1)
    both = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return one | {name: together(both, name) for name in ("two", "two from one")}


def test_steps_have_all_rows_on_any_number_of_devices(seen: dict[str, Seen]) -> None:
    one, two = seen["one"], seen["two"]
    assert list(one["rows"]) == list(range(STEPS))
    assert {len(rows) for rows in one["rows"].values()} == {8}
    assert two["rows"] == one["rows"]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    torch.testing.assert_close(two["weights"], one["weights"])
    assert two["counts"] == one["counts"]
    assert one["counts"]["train"] == 48
    assert one["counts"]["dropped_too_long"] > 8  # of two passes, and of a third


def test_a_pass_has_every_row_once(seen: dict[str, Seen]) -> None:
    lengths = [len(row) for rows in seen["one"]["rows"].values() for row in rows]
    passes = [lengths[start : start + 18] for start in (0, 18)]
    assert sorted(passes[0]) == sorted(passes[1])
    assert len(set(passes[0])) == 18
    assert passes[0] != passes[1]


def test_a_run_goes_on_to_the_last_bit(seen: dict[str, Seen]) -> None:
    whole, on = seen["one"], seen["one on"]
    assert list(on["rows"]) == list(range(CUT, STEPS))
    assert all(on["losses"][step] == whole["losses"][step] for step in on["losses"])
    assert torch.equal(on["weights"], whole["weights"])


@pytest.mark.parametrize("name", ["one from two", "two from one"])
def test_a_state_is_for_any_number_of_devices(seen: dict[str, Seen], name: str) -> None:
    whole, on = seen["one"], seen[name]
    assert min(on["rows"]) in (CUT, CUT - 1)  # what two had agreed on
    for step in on["rows"]:
        assert on["rows"][step] == whole["rows"][step]
        assert on["losses"][step] == pytest.approx(whole["losses"][step], rel=1e-5)
    torch.testing.assert_close(on["weights"], whole["weights"])
    assert on["counts"] == whole["counts"]

"""Runs on several devices go on from their state: on as many, to the last bit; on more or fewer, to the same losses."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from training import fit as training_fit
from training import module, tiny_policy
from warm import fork_ranks
from worlds import load_design

from qtarget import resume_folders
from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Batch
from qtarget.data.example import Example
from qtarget.data.lightning_data import SFTData
from qtarget.data.module import DataConfig, prepare
from qtarget.data.noise import WrongAnswer
from qtarget.data.sources.reasoning_gym import ReasoningGym
from qtarget.errors import QTargetError
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.frozen import Snapshot
from qtarget.model.sharding import whole
from qtarget.run import fit, ranks
from qtarget.signals import Stop
from qtarget.train.callbacks import Meter, tokens_seen
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.optim import AdamW
from qtarget.train.resume_callback import ResumeCallback
from qtarget.train.resume_saved import last_state, restore

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
ROWS, STEPS, CUT = 15, 5, 3
"""The rows make steps of 8 and 7 rows, and don't divide by two; a run is cut short in the middle of an epoch."""
Result = dict[str, Any]


class Cut(BaseException):
    """What ends a run between two steps; nothing of ours may catch it."""


class Losses(L.Callback):
    """By step, the sum over ranks and micro-batches of what is trained on; and which rows that were."""

    def __init__(self, end: int | None) -> None:
        self.end = end
        self.losses: dict[int, float] = {}
        self.rows: dict[int, list[int]] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step == self.end:
            raise Cut
        firsts = [int(labels[labels >= 0][0]) for labels in batch.label_indices if (labels >= 0).any()]
        self.rows.setdefault(trainer.global_step, []).extend(firsts)

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: torch.Tensor) -> None:
        self.losses[trainer.global_step] = self.losses.get(trainer.global_step, 0.0) + float(loss.detach())


class NoJournal:
    def offsets(self) -> dict[str, Any]:
        return {}

    def settle(self) -> None: ...


def run(holder: Path, world: int, strategy: str, *, end: int | None = None, resume: bool = False) -> Result:
    """What this rank sees of a run of psft with steps of a given length, which has everything that a state can hold."""
    settings = {"devices": world, "strategy": strategy, "accumulate": 4 // world, "max_steps": STEPS}
    settings |= {"accelerator": "cpu", "precision": "32-true"}
    cfg = RunConfig.compose(["model=tiny", *(f"trainer.{key}={value}" for key, value in settings.items())])
    trained = QTargetModule(
        tiny_policy().train(),
        load_design("psft"),
        {"old": Snapshot(tiny_policy(), every=2)},
        AdamW(lr=None, update_norm=1e-2, warmup=0.4),
        total_steps=STEPS,
    )
    seen, state = Losses(end), last_state(holder) if resume else None
    callback = ResumeCallback(holder, 1, NoJournal(), Stop(), state, when_stopped=True)
    source = ReasoningGym("chain_sum", {"min_terms": 2, "max_terms": 4}, system="")
    rows = prepare(DataConfig(source, rows=ROWS, heldout_rows=2, noise=WrongAnswer(0.5)), tiny_tokenizer(), 1024).train
    data = SFTData(rows, 256, batch_size=2, accumulate=4 // world, seed=0)
    with suppress(Cut), callback.save_when_stopped():
        fit.lightning_fit(fit.make_trainer(cfg, [meter := Meter(), seen, callback]), trained, data)
        callback.save_final(trained.trainer, trained)
    if end is not None:
        return {}
    return {
        "losses": seen.losses,
        "rows": seen.rows,
        "weights": torch.cat([whole(tensor.detach()).flatten() for tensor in trained.policy.parameters()]),
        "means": trained.whole_run.compute(),
        "detection": trained.whole_detection.compute(),
        "tokens": trained.histograms.compute_until_next()["histogram/p"].counts,
        "read": meter.metrics()["train/tokens_per_second"] * meter.metrics()["train/seconds"],
        "seen": tokens_seen(meter, trained),
        "sizes": _sizes(rows),
    }


def _sizes(rows: Sequence[Example]) -> dict[int, tuple[int, int]]:
    """Of each row, by the index of its first supervised token: its tokens, and the supervised ones among them."""
    starts = accumulate((row.labels for row in rows), initial=0)
    return {start: (len(row), row.labels) for start, row in zip(starts, rows, strict=False)}


def all_in_one(folder: str, jobs: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Several runs in one set of processes: starting one takes longer than what it has to do."""
    fit.prepare_process(0)
    rank, world = dist.get_rank(), dist.get_world_size()
    results = {}
    for name, strategy, options in jobs:
        resumed = options.pop("of", name)
        results[name] = run(Path(folder) / resumed, world, strategy, **options)
        dist.barrier()
    torch.save(results, f"{folder}/{world}-{rank}.pt")


def on_ranks(folder: Path, world: int, jobs: list[tuple[str, str, dict[str, Any]]]) -> list[dict[str, Result]]:
    """By rank, what it saw of each job."""
    with pytest.MonkeyPatch.context() as patch:
        fork_ranks(patch)
        ranks.start(world, all_in_one, str(folder), jobs)
    return [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]


def broken(strategy: str) -> list[tuple[str, str, dict[str, Any]]]:
    """A run, the same cut short, and what goes on from its state."""
    return [
        (f"{strategy} whole", strategy, {}),
        (f"{strategy} cut", strategy, {"end": CUT}),
        (f"{strategy} on", strategy, {"of": f"{strategy} cut", "resume": True}),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def one(folder: Path) -> Result:
    """The run on one device; and, cut short, its state, twice."""
    run(folder / "one cut", 1, "auto", end=CUT)
    shutil.copytree(folder / "one cut", folder / "one cut again")
    return run(folder / "one whole", 1, "auto")


@pytest.fixture(scope="module")
def two(folder: Path, one: Result) -> list[dict[str, Result]]:
    """What two ranks see of all that is asked of them, in one pair of processes."""
    from_one = [
        ("ddp from one", "ddp", {"of": "one cut", "resume": True}),
        ("fsdp2 from one", "fsdp2", {"of": "one cut again", "resume": True}),
    ]
    for_others = [("ddp for one", "ddp", {"end": CUT}), ("fsdp2 for one", "fsdp2", {"end": CUT})]
    return on_ranks(folder, 2, [*broken("ddp"), *broken("fsdp2"), *from_one, *for_others])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_go_on_to_the_last_bit(two: list[dict[str, Result]], strategy: str) -> None:
    for rank in two:
        unbroken, resumed = rank[f"{strategy} whole"], rank[f"{strategy} on"]
        assert list(unbroken["losses"]) == [0, 1, 2, 3, 4]
        assert list(resumed["losses"]) == [2, 3, 4]  # both parts of state 3 were written, and nobody had agreed
        for step, loss in resumed["losses"].items():
            assert loss == unbroken["losses"][step]
            assert resumed["rows"][step] == unbroken["rows"][step]
        assert torch.equal(resumed["weights"], unbroken["weights"])
        for key in ("means", "detection", "tokens", "read"):
            assert resumed[key] == pytest.approx(unbroken[key], rel=1e-12), key
        assert resumed["seen"] == unbroken["seen"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_tokens_seen_are_those_of_all_rows_that_both_ranks_were_given(
    two: list[dict[str, Result]], strategy: str
) -> None:
    """Over two and a half epochs, several micro-batches a step, counted once more from the rows themselves."""
    whole = [rank[f"{strategy} whole"] for rank in two]
    given = [one["sizes"][first] for one in whole for step in one["rows"].values() for first in step]
    assert len(given) > 2 * len(whole[0]["sizes"])
    read, supervised = (float(sum(column)) for column in zip(*given, strict=True))
    assert [one["seen"] for one in whole] == 2 * [{"train/tokens": read, "train/supervised_tokens": supervised}]


def test_each_rank_writes_what_it_holds(two: list[dict[str, Result]], folder: Path) -> None:
    """Halves of what is sharded, every second of what is not; together each weight and moment once."""
    for strategy in ("ddp", "fsdp2"):
        (state,) = resume_folders.states(folder / f"{strategy} cut")
        assert sorted(path.name for path in state.iterdir()) == [
            *(f"rank-{rank}-of-2.{end}" for rank in (0, 1) for end in ("pt", "safetensors")),
            "state.json",
        ]
        parts = [load_file(state / f"rank-{rank}-of-2.safetensors") for rank in (0, 1)]
        sizes = [sum(tensor.numel() for tensor in part.values()) for part in parts]
        count = sum(tensor.numel() for tensor in tiny_policy().parameters())
        assert sum(sizes) == 4 * count  # weights, two moments, the old policy
        assert strategy == "ddp" or max(sizes) < 0.7 * sum(sizes)  # here the snapshot is whole on every rank


# On another number of ranks


def assert_same_run(got: list[Result], one: Result, steps: range) -> None:
    """The rows of each step, what is trained on them to 1e-6, and what was measured from the start."""
    for step in steps:
        assert sorted(row for rank in got for row in rank["rows"][step]) == sorted(one["rows"][step])
        mean = sum(rank["losses"][step] for rank in got) / len(got)  # as DDP averages gradients
        assert mean == pytest.approx(one["losses"][step], rel=1e-6)
    for rank in got:
        assert list(rank["losses"]) == list(steps)
        torch.testing.assert_close(rank["weights"], one["weights"], rtol=1e-5, atol=1e-5)
        assert rank["means"] == pytest.approx(one["means"], rel=1e-5)
        assert rank["detection"] == pytest.approx(one["detection"], rel=1e-5)
        assert sum(rank["tokens"]) == sum(one["tokens"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_run_of_one_device_goes_on_on_two(two: list[dict[str, Result]], one: Result, strategy: str) -> None:
    assert_same_run([rank[f"{strategy} from one"] for rank in two], one, range(CUT, STEPS))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_run_of_two_devices_goes_on_on_one(
    two: list[dict[str, Result]], one: Result, strategy: str, folder: Path
) -> None:
    assert_same_run([run(folder / f"{strategy} for one", 1, "auto", resume=True)], one, range(CUT - 1, STEPS))


@pytest.mark.slow
def test_a_run_of_four_devices_goes_on_on_two(one: Result, tmp_path: Path) -> None:
    on_ranks(tmp_path, 4, [("cut", "fsdp2", {"end": CUT})])
    two = on_ranks(tmp_path, 2, [("on", "fsdp2", {"of": "cut", "resume": True})])
    assert_same_run([rank["on"] for rank in two], one, range(CUT - 1, STEPS))


def test_a_state_of_another_model_is_refused(folder: Path, one: Result) -> None:
    """By name, before anything is trained."""
    state = last_state(folder / "one whole")
    assert state is not None
    made = module("sft")
    with pytest.raises(QTargetError, match=r"one whole/step-5 can't be read \(ValueError: it is of another model"):
        restore(state, training_fit(made, batch_size=4, accumulate=1), made)


class Planted:
    """What a pickle could do: here it leaves a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_planted_pickle_is_refused(tmp_path: Path) -> None:
    """In the file of a rank, which is read as weights alone; beside it, as `.metadata`, nobody reads one."""
    run(tmp_path / "state", 1, "auto", end=2)
    (state,) = resume_folders.states(tmp_path / "state")
    (state / ".metadata").write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    run(tmp_path / "state", 1, "auto", resume=True, end=3)
    (state,) = resume_folders.states(tmp_path / "state")
    size = (rest := state / "rank-0-of-1.pt").stat().st_size
    rest.write_bytes(pickle.dumps(Planted(tmp_path / "ran"), protocol=2).ljust(size, b"\0"))
    with pytest.raises(QTargetError, match=r"state/step-3 can't be read \(UnpicklingError"):
        run(tmp_path / "state", 1, "auto", resume=True)
    assert not (tmp_path / "ran").exists()

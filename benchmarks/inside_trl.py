"""(f) TRL's SFTTrainer with its own losses and with designs: time and memory of forward and backward, on one batch."""

from __future__ import annotations

import functools
import multiprocessing
import resource
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
import timing
import torch
from datasets import Dataset
from datasets.utils import logging as datasets_logging
from steps import device
from table import Row, Section
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

import qtarget
from qtarget.model.builtin import tiny_tokenizer
from qtarget.trl import QTargetSFTTrainer

ROWS, LENGTH, VOCABULARY, ROUNDS = 2, 256, 49_152, 5
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
TRL_NLL, TRL_DFT = 'TRL, loss_type="nll"', 'TRL, loss_type="dft"'
Build = Callable[[str], Any]
"""A folder → a trainer."""


def model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=4, **SIZES))


@functools.cache
def wide_tokenizer() -> Any:
    """Rows are given as tokens: of the tokenizer only its pad token and its size matter."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<t{index}>" for index in range(VOCABULARY - len(tokenizer))])
    return tokenizer


def settings(folder: str, **changes: Any) -> SFTConfig:
    return SFTConfig(
        output_dir=folder,
        use_cpu=device().type == "cpu",
        bf16=True,
        activation_checkpointing=False,
        per_device_train_batch_size=ROWS,
        dataloader_pin_memory=False,
        max_length=None,
        report_to="none",
        **changes,
    )


def given() -> dict[str, Any]:
    ids = torch.randint(300, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    rows = Dataset.from_list([{"input_ids": row} for row in ids])
    return {"model": model(), "train_dataset": rows, "processing_class": wide_tokenizer()}


def theirs(loss_type: str = "nll", design: str | None = None) -> Build:
    def build(folder: str) -> Any:
        loss = design and qtarget.hf_loss(qtarget.load_design(design))
        return SFTTrainer(args=settings(folder, loss_type=loss_type), compute_loss_func=loss, **given())

    return build


def ours(design: str, references: Callable[[], Mapping[str, Any]] = dict) -> Build:
    def build(folder: str) -> Any:
        return QTargetSFTTrainer(args=settings(folder), design=design, references=references(), **given())

    return build


CONTENDERS: dict[str, tuple[Build, str]] = {
    TRL_NLL: (theirs(), TRL_NLL),
    "QTargetSFTTrainer, sft": (ours("sft"), TRL_NLL),
    TRL_DFT: (theirs("dft"), TRL_DFT),
    "TRL, compute_loss_func=hf_loss(dft)": (theirs(design="dft"), TRL_DFT),
    "QTargetSFTTrainer, dft": (ours("dft"), TRL_DFT),
    "QTargetSFTTrainer, one_minus_prior": (ours("one_minus_prior", lambda: {"prior": "frozen"}), TRL_DFT),
    "QTargetSFTTrainer, target_sft": (ours("target_sft", lambda: {"teacher": model(1)}), TRL_DFT),
}
"""Trainer → how it is built, and whose time and memory its own are compared with."""


def step_of(trainer: Any) -> timing.Step:
    """Forward and backward of the trainer's own training_step; the optimizer, the same for all, is left out."""
    lm = trainer.accelerator.prepare_model(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    inputs = next(iter(trainer.get_train_dataloader()))
    items = torch.tensor(ROWS * (LENGTH - 1))

    def step() -> torch.Tensor:
        loss: torch.Tensor = trainer.training_step(lm, dict(inputs), items)
        lm.zero_grad()
        return loss

    return step


def peak(name: str) -> float:
    """MB that the steps of a contender need beside what its process held before, in a process of its own.

    That one is a fork: nothing may have gone backward before it, since torch's threads don't survive one.
    """
    context = multiprocessing.get_context("fork")
    mine, others = context.Pipe()
    process = context.Process(target=_measure_peak, args=(name, others))
    process.start()
    others.close()  # so that a child that dies is an EOFError here, not a wait
    found = float(mine.recv())
    process.join()
    return found


def _measure_peak(name: str, pipe: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        step = step_of(CONTENDERS[name][0](folder))
        held = psutil.Process().memory_info().rss
        for _ in range(2):
            step()
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - held / 1e6)


def quiet() -> None:
    warnings.simplefilter("ignore")
    datasets_logging.disable_progress_bar()


def measure(rounds: int, names: Sequence[str] = tuple(CONTENDERS)) -> list[Row]:
    quiet()
    wide_tokenizer()
    memory = {}
    for name in names:
        timing.progress(f"(f) memory of {name}")
        memory[name] = peak(name)
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: step_of(CONTENDERS[name][0](folder)) for name in names}
        taken = timing.in_turn(steps, rounds, title="(f)", warm=1)
    return [_row(name, CONTENDERS[name][1], taken, memory) for name in names]


def _row(name: str, beside: str, taken: timing.Times, memory: Mapping[str, float]) -> Row:
    compared = name != beside
    return {
        "trainer": name,
        "s/step": statistics.median(taken[name]),
        "MB": memory[name],
        "beside": beside if compared else None,
        "time": timing.ratio(taken, name, beside) if compared else None,
        "memory": memory[name] / memory[beside] if compared else None,
    }


def section(quick: bool) -> Section:
    return Section("f", "Inside TRL's SFTTrainer", [(CAPTION, measure(1 if quick else ROUNDS))])


CAPTION = f"""\
Forward and backward of one batch of {ROWS} rows of {LENGTH} random tokens, all supervised, in each trainer's own
`training_step`: a Llama of 4 layers of width 256 with random weights and SmolLM2's vocabulary of {VOCABULARY:,};
fp32 weights under bf16 autocast, no activation checkpointing, no optimizer. *s/step*: median of {ROUNDS} rounds in
which all took turns, after one that doesn't count. *MB*: what two steps need beside what the process held before
them, each in a process of its own. *time*, *memory*: the ratio to the trainer that stands *beside*, of time the
median over the rounds. `hf_loss` is TRL's deprecated way for another loss, with its second forward.
`one_minus_prior` reads a frozen copy of the model too, `target_sft` a teacher of the same size."""

"""Inside transformers' and TRL's trainers a design takes the steps that `qtarget train` takes, however they are cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny_trainers as tiny
import transformers
from datasets import Dataset

import qtarget


@dataclass(frozen=True)
class Case:
    """A design, and what stands for its references."""

    design: str
    changes: dict[str, Any] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    prior: str = "frozen"  # or "another": under a prior that is the policy itself a ranking of excess loss has ties

    def load(self) -> Any:
        return qtarget.load_design(self.design, **self.changes)

    def given(self) -> dict[str, Any]:
        prior = "frozen" if self.prior == "frozen" else tiny.teacher()
        stand = {"prior": prior, "teacher": tiny.teacher(), "old": f"snapshot:{tiny.EVERY}"}
        return {role: stand[role] for role in self.references}


CASES = {
    "sft": Case("sft"),
    "dft": Case("dft"),
    "a prior": Case("one_minus_prior", references=("prior",)),
    "a target of Target-SFT": Case("target_sft", references=("teacher",)),
    "a teacher": Case("kd", references=("teacher",)),
    "a schedule": Case("dft", {"reliance.alpha": "linear:0:1"}),
    "the old policy": Case("psft", references=("old",)),
    "whole sequences": Case("talr"),
    "the whole step, kept tokens": Case("rho1", {"reliance.source": "prior"}, ("prior",), "another"),
    "the sum of weights": Case("iw_sft_token", {"normalize": "weight_sum"}, ("prior",)),
    "a mean of sequences": Case("sft", {"normalize": "sequences"}),
    "negatives": Case("unlikelihood"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_weights_are_those_of_qtarget_train_at_any_accumulation(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    expected = tiny.of_qtarget_train(case.load(), case.given())
    for make, batch_size, accumulate in ((tiny.plain_trainer, 2, 4), (tiny.sft_trainer, 4, 2)):
        trainer = make(
            tmp_path,
            case.load(),
            case.given(),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulate,
        )
        tiny.assert_same(tiny.trained(trainer), expected)


@pytest.mark.parametrize(
    "layout",
    [
        {"padding_free": True, "max_length": None},
        {"packing": True, "max_length": 256},
        {"pad_to_multiple_of": 7},
        {"padding_free": True, "max_length": None, "pad_to_multiple_of": 7},
    ],
    ids=["padding-free", "packing", "a multiple", "padding-free, a multiple"],
)
@pytest.mark.parametrize("name", ["a teacher", "whole sequences", "negatives"])
def test_packed_and_padding_free_rows_are_the_same_demonstrations(
    name: str, layout: dict[str, Any], tmp_path: Path
) -> None:
    """TRL 1.16: padding_free puts the rows of a batch into one; packing (bfd) those that fit into max_length."""
    case = CASES[name]
    trainer = tiny.sft_trainer(tmp_path, case.load(), case.given(), **layout)
    if "packing" in layout:
        assert 1 < len(trainer.train_dataset) < len(tiny.rows())
    tiny.assert_same(tiny.trained(trainer), tiny.of_qtarget_train(case.load(), case.given()))


@pytest.mark.parametrize("name", ["a teacher", "negatives"])
def test_padding_on_the_left_changes_nothing(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    trainer = tiny.plain_trainer(tmp_path, case.load(), case.given())
    trainer.data_collator.tokenizer.padding_side = "left"
    tiny.assert_same(tiny.trained(trainer), tiny.of_qtarget_train(case.load(), case.given()))


@pytest.mark.parametrize("name", ["sft", "dft"])
def test_the_weights_are_those_of_hf_loss(name: str, tmp_path: Path) -> None:
    design = qtarget.load_design(name)
    ours = tiny.plain_trainer(tmp_path, design, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    theirs = transformers.Trainer(
        tiny.tiny(),
        ours.args,
        train_dataset=ours.train_dataset,
        data_collator=ours.data_collator,
        compute_loss_func=qtarget.hf_loss(design),
    )
    tiny.assert_same(tiny.trained(ours), tiny.trained(theirs))


def test_trl_and_a_design_agree_on_the_loss_the_log_and_the_step(tmp_path: Path) -> None:
    """TRL 1.16's own nll, with its fused head, on language-modelling rows whose every token is supervised."""
    rows = [{"input_ids": row["input_ids"]} for row in tiny.rows()]
    given = {"train_dataset": Dataset.from_list(rows), "model": tiny.tiny().float()}
    ours = tiny.sft_trainer(tmp_path, "sft", given=given, gradient_accumulation_steps=4, per_device_train_batch_size=2)
    theirs = tiny.trl.SFTTrainer(
        tiny.tiny().float(), ours.args, train_dataset=given["train_dataset"], processing_class=tiny.tiny_tokenizer()
    )
    tiny.assert_same(tiny.trained(ours), tiny.trained(theirs), atol=2e-5)
    logs = [[line for line in made.state.log_history if "loss" in line] for made in (ours, theirs)]
    for mine, other in zip(*logs, strict=True):
        for name in ("loss", "num_tokens", "epoch", "learning_rate", "grad_norm"):
            assert mine[name] == pytest.approx(other[name], rel=1e-4), name
        assert mine["nll"] == pytest.approx(mine["loss"], rel=1e-6)
        assert set(other) < set(mine)

"""hf_loss under the collators of transformers and TRL: a sequence is what it is, however rows are laid out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch import Tensor
from worlds import load_design

import qtarget
from qtarget.errors import QTargetError
from qtarget.model.builtin import tiny_config, tiny_model

V = 260
LENGTHS = (4, 9, 6, 13)


def rows(turns: int = 1) -> list[dict[str, list[int]]]:
    """Documents with a prompt of two tokens; of several turns, the middle token is a question again."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in LENGTHS:
        ids = torch.randint(3, 200, (length,), generator=generator).tolist()
        labels = [-100, -100, *ids[2:]]
        if turns > 1:
            labels[length // 2 + 1] = -100
        made.append({"input_ids": ids, "labels": labels})
    return made


def padded(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    width = max(len(example["input_ids"]) for example in examples)
    ids = [example["input_ids"] + [0] * (width - len(example["input_ids"])) for example in examples]
    labels = [example["labels"] + [-100] * (width - len(example["labels"])) for example in examples]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def flattened(examples: list[dict[str, list[int]]], **how: Any) -> dict[str, Tensor]:
    made: dict[str, Tensor] = transformers.DataCollatorWithFlattening(return_tensors="pt", **how)(examples)
    return made


def of_trl(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
    made: dict[str, Tensor] = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(examples)
    return made


def logits(batch: dict[str, Tensor]) -> Tensor:
    """A model that looks at one token at a time says the same however rows are laid out."""
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(1))
    return table[batch["input_ids"]]


def items(batch: dict[str, Tensor]) -> int:
    return int((batch["labels"][:, 1:] != -100).sum())


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("collate", [flattened, of_trl])
def test_flattened_rows_are_refused_or_read_by_their_positions(collate: Any, turns: int) -> None:
    """transformers 5.23's DataCollatorWithFlattening and TRL 1.16's padding_free put all documents in one row."""
    examples = rows(turns)
    loss, apart = qtarget.hf_loss(load_design("talr"), sequences="rows"), padded(examples)
    expected = loss({"logits": logits(apart)}, apart["labels"], items(apart))
    flat = collate(examples)
    assert flat["labels"].shape[0] == 1
    auto = qtarget.hf_loss(load_design("talr"))
    with pytest.raises(QTargetError, match="a row holds several stretches of supervised tokens"):
        auto({"logits": logits(flat)}, flat["labels"], items(flat))
    got = auto({"logits": logits(flat)}, flat["labels"], items(flat), position_ids=flat["position_ids"])
    torch.testing.assert_close(got, expected)
    wrong = loss({"logits": logits(flat)}, flat["labels"], items(flat))
    assert abs(float(wrong - expected)) > 0.01 * float(expected)  # what taking the row for a sequence would give


@pytest.mark.parametrize("start", [0, 2])
def test_positions_may_start_anywhere_and_seq_idx_says_the_same(start: int) -> None:
    loss, apart = qtarget.hf_loss(load_design("talr")), padded(rows())
    flat = flattened(rows(), return_seq_idx=True, position_ids_start=start)
    given = {"outputs": {"logits": logits(flat)}, "labels": flat["labels"]}
    expected = loss({"logits": logits(apart)}, apart["labels"])
    torch.testing.assert_close(loss(**given, position_ids=flat["position_ids"]), expected)
    torch.testing.assert_close(loss(**given, sequence_ids=flat["seq_idx"]), expected)


def test_packed_rows_of_two_documents_each_are_read_by_their_positions() -> None:
    """Several rows that each hold several documents: packing with return_position_ids."""
    examples, loss = rows(), qtarget.hf_loss(load_design("talr"))
    packs = [flattened(examples[:2]), flattened(examples[2:])]
    width = max(pack["labels"].shape[1] for pack in packs)
    fill = {"input_ids": 0, "labels": -100, "position_ids": 0}
    joined = {
        name: torch.cat([torch.nn.functional.pad(p[name], (0, width - p[name].shape[1]), value=v) for p in packs])
        for name, v in fill.items()
    }
    apart = padded(examples)
    expected = loss({"logits": logits(apart)}, apart["labels"])
    with pytest.raises(QTargetError, match="sequences="):
        loss({"logits": logits(joined)}, joined["labels"])
    got = loss({"logits": logits(joined)}, joined["labels"], position_ids=joined["position_ids"])
    torch.testing.assert_close(got, expected)


def test_conversations_of_several_turns_are_a_sequence_a_row_where_that_is_said() -> None:
    batch = padded(rows(turns=2))
    with pytest.raises(QTargetError, match=r'hf_loss\(…, sequences="rows"\)'):
        qtarget.hf_loss(load_design("talr"))({"logits": logits(batch)}, batch["labels"])
    said = qtarget.hf_loss(load_design("talr"), sequences="rows")({"logits": logits(batch)}, batch["labels"])
    out = qtarget.dense_loss(logits(batch)[:, :-1], batch["labels"][:, 1:], load_design("talr"))
    torch.testing.assert_close(said, out.total / len(out.loss))
    with pytest.raises(QTargetError, match="sequences must be one of auto, rows, got 'documents'"):
        qtarget.hf_loss(load_design("talr"), sequences="documents")


@pytest.mark.parametrize("name", ["sft", "dft", "label_smoothing", "cayley_trans", "gem"])
def test_designs_that_look_at_no_sequence_take_any_layout(name: str) -> None:
    loss, apart, flat = qtarget.hf_loss(load_design(name)), padded(rows(2)), flattened(rows(2))
    expected = loss({"logits": logits(apart)}, apart["labels"], items(apart))
    torch.testing.assert_close(loss({"logits": logits(flat)}, flat["labels"], items(flat)), expected)


def test_boundaries_of_another_shape_are_refused() -> None:
    flat, loss = flattened(rows()), qtarget.hf_loss(load_design("talr"))
    with pytest.raises(QTargetError, match=r"position_ids \(1, 31\) must have the shape of the labels \(1, 32\)"):
        loss({"logits": logits(flat)}, flat["labels"], position_ids=flat["position_ids"][:, 1:])


def trained(folder: Path, collate: Any, loss: Any, kind: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=len(LENGTHS),
        optim="sgd",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = kind(
            model=tiny_model(tiny_config(V)),
            args=arguments,
            train_dataset=Dataset.from_list(rows()),
            data_collator=collate,
            compute_loss_func=loss,
        )
        return made.train().training_loss


class Told(transformers.Trainer):  # type: ignore[misc]
    """What the message tells users to write."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        outputs = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"])
        made: Tensor = self.compute_loss_func(
            outputs, inputs["labels"], num_items_in_batch, position_ids=inputs["position_ids"]
        )
        return made


def test_the_trainer_itself_refuses_or_takes_the_same_step(tmp_path: Path) -> None:
    """transformers 5.23 gives compute_loss_func outputs, labels and a count, and no positions."""
    loss, flat = qtarget.hf_loss(load_design("talr")), transformers.DataCollatorWithFlattening(return_tensors="pt")
    with pytest.raises(QTargetError, match="can't tell apart"):
        trained(tmp_path, flat, loss, transformers.Trainer)
    expected = trained(tmp_path, padded, loss, transformers.Trainer)
    assert trained(tmp_path, flat, loss, Told) == pytest.approx(expected, rel=1e-4)

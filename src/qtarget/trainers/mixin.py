"""A target design as the loss of transformers' Trainer, or of one that inherits from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qtarget import checks
from qtarget.config.design_file import design_of
from qtarget.data.batch import Batch
from qtarget.errors import QTargetError
from qtarget.math.loss import LossOutput
from qtarget.math.target import Design, columns
from qtarget.measures import HIT
from qtarget.model.adapting import check_adapter
from qtarget.model.agreement import check_logits
from qtarget.model.frozen import Frozen
from qtarget.model.policy import Policy, check_packing
from qtarget.model.provide import embedding_rows
from qtarget.train.memory import chunk_that_fits
from qtarget.train.policy_loss import PolicyLoss, progress_at
from qtarget.train.step import MicroBatchScale, StepNormalizer, extra_forward_passes
from qtarget.trainers import snapshots
from qtarget.trainers.collated import windowed
from qtarget.trainers.forward import hand_over, own_forward
from qtarget.trainers.means import LoggedMeans
from qtarget.trainers.trainer_references import make_references
from qtarget.trainers.trainer_settings import check_given, check_trainer

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object  # the one that stands behind the mixin


class TrainerLoss(PolicyLoss):
    """The loss of a Trainer's model. state: the Trainer's, which knows the step and how many there are."""

    compiled = False
    measures = (HIT,)

    def __init__(self, policy: Policy, design: Design, references: dict[str, Frozen], state: Callable[[], Any]) -> None:
        self.policy, self.design, self.references = policy, design, references
        self.chunk_size: int | None = None
        self._state = state

    def progress(self) -> float:
        state = self._state()
        return progress_at(state.global_step, state.max_steps)


class QTargetTrainerMixin(Trainer):
    """`class MyTrainer(QTargetTrainerMixin, transformers.Trainer)`: its loss is that of a target design.

    design: a name ("dft"), the path of a yaml, or what `qtarget.load_design` gives. references: role → what stands for
    it: for the prior "frozen", "adapter_off", a model, or a model's name; for the teacher a model or a name; for the
    old policy "snapshot" or "snapshot:N". chunk_size: tokens that go through the output layer at once. All else is the
    Trainer's.

    With N the supervised tokens of an optimizer step, over all its micro-batches and ranks, the step's loss is
    Σ loss / N, or what the design's `normalize` says, however the step is cut. Progress, for schedules, is
    global_step / (max_steps − 1). Hidden states are read once, and tokens × vocabulary is never held. Measures of the
    design stand in the log beside the Trainer's own: nll, entropy, mean_token_accuracy, target/trust, target/reliance …
    and with eval_ before them after an evaluation.

    Raises QTargetError before training for a design without its references, and for settings that can't be honoured.
    """

    loss_is_scaled_for_ga = True  # transformers 5.23 then leaves the loss as it is

    def __init__(
        self,
        *positional: Any,
        design: Any,
        references: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
        **given: Any,
    ) -> None:
        made = design_of(design)
        if chunk_size is not None:
            checks.whole("chunk_size", chunk_size, 1)
        check_given(inspect.signature(super().__init__).bind_partial(*positional, **given).arguments)
        super().__init__(*positional, **given)
        check_trainer(self)
        self._set_up(made, references or {}, chunk_size)

    def _set_up(self: Any, design: Design, references: Mapping[str, Any], chunk_size: int | None) -> None:
        tokenizer = getattr(self, "_tokenizer", self.processing_class)
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        policy = Policy(self.model, _vocabulary(self.model, tokenizer))
        with own_forward(self.model):
            check_adapter(policy) if policy.has_adapter else check_logits(policy)
        frozen = make_references(references, design, policy, tokenizer, self.args.device)
        self.design = design
        self.design_loss = TrainerLoss(policy, design, frozen, lambda: self.state)
        self.design_loss.chunk_size = chunk_size
        self._normalizer = StepNormalizer(design, policy, self.design_loss.token_table, self.design_loss.token_loss)
        self._means = {True: LoggedMeans(self.args.device), False: LoggedMeans(self.args.device)}
        self._eval_prefix = "eval"
        self._samples: Sequence[Any] = ()  # the micro-batches of the optimizer step, as the collator made them
        self._current: Any = None  # the one that is trained on
        self._window: list[Batch] = []
        self._knows_packing = False
        hand_over(self.model)

    # The loss

    def get_batch_samples(self: Any, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        self._samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._window = []
        return self._samples, items

    def training_step(self: Any, model: Any, inputs: Any, *further: Any, **named: Any) -> Any:
        self._current = inputs
        try:
            return super().training_step(model, inputs, *further, **named)
        finally:
            self._current = None

    def compute_loss(
        self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Σ loss of the micro-batch, times what makes it its part of the step's mean; counts are the step's own.

        return_outputs: with the model's outputs, at the price of a second forward.
        """
        self.design_loss.policy.training = self.model.training
        batch = self._batch(inputs)
        self._prepare(batch)
        scale = self._scale(batch)
        kept: list[LossOutput] = []

        def total() -> Tensor:
            kept.append(self.design_loss.token_loss(batch, scale.scope_values, scale.token_scale))
            return kept[0].total

        loss = model(design_loss=total)
        self._means[self.model.training].update(kept[0])
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**{name: value for name, value in inputs.items() if name != "labels"})

    def _batch(self: Any, inputs: Any) -> Batch:
        """With its window. Outside of an optimizer step a batch is a step of its own."""
        places = [place for place, sample in enumerate(self._samples) if sample is self._current]
        is_step = self._current is not None and bool(places)
        if not is_step:
            return windowed([inputs], columns(self.design), self.args.device)[0]
        if not self._window:
            self._window = windowed(self._samples, columns(self.design), self.args.device)
        return self._window[places[0]]

    def _prepare(self: Any, batch: Batch) -> None:
        loss = self.design_loss
        if loss.chunk_size is None:
            trained = sum(tensor.numel() for tensor in self.model.parameters() if tensor.requires_grad)
            loss.chunk_size = chunk_that_fits(loss.policy.vocab_size, trained, self.args.device)
        if batch.position_ids is not None and not self._knows_packing:
            _check_packing(loss.policy)
            self._knows_packing = True
        if self.model.training:
            loss.renew_snapshots(self.state.global_step)

    def _scale(self: Any, batch: Batch) -> MicroBatchScale:
        """What reads the step first reads the model where its own forward would: under its autocast."""
        if not extra_forward_passes(self.design):
            return self._normalizer.for_batch(batch)
        with torch.no_grad():
            return self.model(design_loss=lambda: self._normalizer.for_batch(batch))

    def prediction_step(self: Any, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        if not prediction_loss_only:  # logits are wanted, and cost a second forward
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    # The log

    def log(self: Any, logs: dict[str, float], *further: Any, **named: Any) -> None:
        is_training = self.model.training
        before = "" if is_training else f"{self._eval_prefix}_"
        logs.update({f"{before}{name}": value for name, value in self._means[is_training].pop().items()})
        super().log(logs, *further, **named)

    def evaluate(
        self: Any, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        self._means[False].clear()
        self._eval_prefix = metric_key_prefix
        result: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        return result

    # Checkpoints

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            snapshots.save(folder, self.design_loss)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        snapshots.restore(Path(resume_from_checkpoint), self.design_loss)


def _vocabulary(lm: Any, tokenizer: Any) -> int:
    """Tokens that are real: rows of the output layer beyond them are padding."""
    if tokenizer is not None and hasattr(tokenizer, "get_vocab"):
        return len(tokenizer)
    rows = embedding_rows(lm.config)
    if rows is None:
        raise QTargetError("the model's configuration names no vocab_size: give processing_class, its tokenizer")
    return rows


def _check_packing(policy: Policy) -> None:
    try:
        check_packing(policy)
    except QTargetError as error:
        lets = str(error).partition(":")[0]
        raise QTargetError(f"{lets}: set packing=False and padding_free=False, or take a collator that pads") from None

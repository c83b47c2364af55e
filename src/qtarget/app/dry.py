"""`trainer=dry`: what a run would do and take, told without loading a weight."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from qtarget.app import compose
from qtarget.app.caching import HELDOUT, described, role_of
from qtarget.app.run_config import RunConfig
from qtarget.app.throughput import estimate
from qtarget.math.target import needs
from qtarget.math.tokens import CHUNK_BYTES
from qtarget.model import provide
from qtarget.model.cache import free_bytes, in_words
from qtarget.model.policy import Policy
from qtarget.model.provide import DTYPES
from qtarget.train.step import scoring_passes

OPTIMIZER_BYTES = 4 + 8
"""Per trained parameter: an fp32 gradient, and the two moments of AdamW."""


def dry_run(cfg: RunConfig, title: str) -> None:
    """Print the plan of a run. Raises QTargetError for whatever the run itself would refuse before it starts."""
    plan = compose.plan(cfg)
    print(f"{title}, nothing is run:")
    for what, fact in _facts(plan):
        print(f"  {what:<12}{fact}")


def _facts(plan: compose.Plan) -> Iterator[tuple[str, str]]:
    trained, epochs = plan.prepared.train, plan.epochs
    read, scored = epochs * sum(map(len, trained)), epochs * sum(row.labels for row in trained)
    policy = compose.adapted(plan, provide.outline(plan.model, len(plan.tokenizer)))
    yield "training", plan.extent
    yield "tokens", f"{in_count(read)} read, {in_count(scored)} of them supervised"
    yield "parameters", f"{in_count(_size(policy))}, {in_count(_trained(policy))} of them trained"
    operations = _operations(plan, policy, read, scored)
    yield "operations", f"{in_count(operations)} floating-point operations to train"
    yield "time", estimate(plan.cfg.trainer, operations)
    yield (
        "memory",
        f"{in_words(_memory(plan, policy))} a device for weights, gradients, optimizer and loss; activations beside",
    )
    yield "loss", plan.engine.said
    yield from _references(plan)


def _references(plan: compose.Plan) -> Iterator[tuple[str, str]]:
    for role in plan.references:
        told = "" if role in needs(plan.design) else ", for measuring drift from it"
        yield "reference", f"{role}: {plan.cfg.references[role].KIND}{told}"
    for name, cache in plan.caches.items():
        yield "cache", described(name, cache, plan.references[role_of(name)])
        yield "", f"{in_words(free_bytes(cache.folder))} free there"


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _trained(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _operations(plan: compose.Plan, policy: Policy, read: float, scored: float) -> float:
    """2 per weight and token forward, 2 backward to the activations, 2 to a weight that is trained.

    The head reads supervised tokens alone; attention is left out.
    """
    head = policy.head.weight.numel()
    trunk = _size(policy) - head
    of_head = 4 + 2 * policy.head.weight.requires_grad
    again = 2 * plan.cfg.model.gradient_checkpointing  # activations are computed twice
    of_trunk = (4 + again) * trunk + 2 * min(trunk, _trained(policy))
    live = {role: size for role, size in _live(plan).items() if role in needs(plan.design)}
    whole = [
        role for role, cache in plan.caches.items() if cache.recipe.detail == "hidden" and role in needs(plan.design)
    ]
    passes = 2 * scoring_passes(plan.design)
    of_live = 2 * sum(size - head for size in live.values()) * read
    of_heads = 2 * (len(live) + len(whole)) * head * scored
    return (of_trunk + passes * trunk) * read + (of_head * head + passes * head) * scored + of_live + of_heads


def _live(plan: compose.Plan) -> dict[str, int]:
    """Role → weights of the model that runs beside the policy."""
    kinds = {role: plan.cfg.references[role].KIND for role in plan.references}
    vocab = len(plan.tokenizer)
    live = {
        role: _size(provide.outline(plan.references[role], vocab)) for role, kind in kinds.items() if kind != "cached"
    }
    apart = "prior" in live and "prior" in needs(plan.design) and compose.has_flaw(plan, "prior")
    return live | ({HELDOUT: live["prior"]} if apart and plan.cfg.eval.kl_prior and plan.prepared.heldout else {})


def _memory(plan: compose.Plan, policy: Policy) -> int:
    """Bytes on each device: all of it, but under fsdp2 only a share of the policy."""
    shares = plan.cfg.trainer.processes if plan.cfg.trainer.strategy == "fsdp2" else 1
    width = DTYPES[plan.cfg.model.dtype].itemsize
    copies = 0
    for role, size in _live(plan).items():
        node = plan.cfg.references[role_of(role)]
        copies += 0 if node.KIND == "adapter_off" else DTYPES[node.dtype].itemsize * size
    optimizer = OPTIMIZER_BYTES + (width if plan.optim.update_norm else 0)  # it copies the weights of a step
    held = width * _size(policy) + optimizer * _trained(policy)
    return held // shares + copies + 4 * CHUNK_BYTES


def in_count(number: float) -> str:
    """1234567 → 1.2 million."""
    for unit in ("", " thousand", " million", " billion", " trillion"):
        if number < 1000:
            return f"{number:.{1 if unit else 0}f}{unit}"
        number /= 1000
    return f"{number:.1f} quadrillion"

"""`trainer=dry`: what a run would do, take and last, without loading a weight."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from qtarget.config.parts import make_tracker
from qtarget.config.reference_kind import PlacedReference
from qtarget.config.references import FrozenReference
from qtarget.config.run_config import RunConfig, TrainerConfig
from qtarget.data.example import label_counts, lengths
from qtarget.math.target import needs
from qtarget.math.tokens import CHUNK_BYTES
from qtarget.model import provide
from qtarget.model.cache_build import free_bytes
from qtarget.model.policy import Policy, linear_weights
from qtarget.model.provide import DTYPES
from qtarget.model.sharding import decoder_layers
from qtarget.run import build
from qtarget.run.caching import HELDOUT, described, role_of
from qtarget.run.disk import check_room, disk_use, unbuilt_caches
from qtarget.run.plan import Plan, make_plan
from qtarget.train.step import extra_forward_passes
from qtarget.units import in_bytes, in_time

KEYS = "(trainer.utilisation, trainer.device_tflops)"
MEASURED_FOR = 0.2  # seconds
SIDES = {"cpu": 1024, "cuda": 8192}
"""Of the square product that is timed: large enough to fill the device, small enough to take a moment."""


def estimate(trainer: TrainerConfig, operations: float) -> str:
    """How long `operations` take, and what that assumes; without trainer.device_tflops this machine is measured."""
    utilisation, count = f"{100 * trainer.utilisation:g} %", trainer.processes
    each = trainer.device_tflops
    if each is None:
        device = "cuda" if trainer.on_gpu else "cpu"
        count = count if device == "cuda" else 1  # processes of a CPU share it
        each = product_rate(device, trainer.precision) / 1e12
        at = f"the {each:.3g} TFLOP/s just measured"
    else:
        at = f"{each:g} TFLOP/s each"
    seconds = operations / (count * each * 1e12 * trainer.utilisation)
    devices = "1 device" if count == 1 else f"{count} devices"
    return f"about {in_time(seconds)} on {devices} at {utilisation} of {at} {KEYS}; attention and evaluation left out"


def product_rate(device: str, precision: str) -> float:
    """Operations a second of one large matrix product at the precision of training: the best of a moment's."""
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    square = torch.randn(SIDES[device], SIDES[device], device=device, dtype=dtype)
    fastest, until = float("inf"), time.perf_counter() + MEASURED_FOR
    while time.perf_counter() < until or fastest == float("inf"):
        began = time.perf_counter()
        square @ square
        if device == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - began)
    return float(2 * SIDES[device] ** 3 / fastest)


OPTIMIZER_BYTES = 4 + 8
"""Per trained parameter: an fp32 gradient, and the two moments of AdamW."""


def dry_run(cfg: RunConfig, title: str) -> None:
    """Print the plan of a run. Raises QTargetError for whatever the run itself would refuse before it starts."""
    make_tracker(cfg.tracker)
    plan = make_plan(cfg)
    print(f"{title}, nothing is run:")
    for what, fact in _facts(plan):
        print(f"  {what:<12}{fact}")


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    trained, epochs = plan.prepared.train, plan.epochs
    read, scored = epochs * sum(lengths(trained)), epochs * sum(label_counts(trained))
    policy = build.adapted(plan, provide.outline(plan.model, len(plan.tokenizer)))
    yield "training", plan.extent
    by = "" if plan.prepared.stream is None else f", by the first {len(trained)} rows: the others aren't read before"
    yield "tokens", f"{in_count(read)} read, {in_count(scored)} of them supervised{by}"
    yield "parameters", f"{in_count(_size(policy))}, {in_count(_trained(policy))} of them trained"
    operations = _operations(plan, policy, read, scored)
    yield "operations", f"{in_count(operations)} floating-point operations to train"
    yield "time", estimate(plan.cfg.trainer, operations)
    yield (
        "memory",
        f"{in_bytes(_memory(plan, policy))} a device for weights, gradients, optimizer and loss; activations beside",
    )
    yield "loss", plan.engine.description
    yield from _references(plan)
    yield from _disk(plan)


def _disk(plan: Plan) -> Iterator[tuple[str, str]]:
    folder, use = Path(plan.cfg.output_dir, plan.cfg.experiment_name), disk_use(plan.cfg, plan.design)
    warning = check_room(use, folder, unbuilt_caches(plan))
    yield "disk", use.in_words
    yield "", warning or f"{in_bytes(free_bytes(folder.absolute()))} free in {folder}"


def _references(plan: Plan) -> Iterator[tuple[str, str]]:
    for role in plan.references:
        purpose = "" if role in needs(plan.design) else ", for measuring drift from it"
        yield "reference", f"{role}: {plan.cfg.references[role].kind}{purpose}"
    for name, cache in plan.caches.items():
        yield "cache", described(name, cache, plan.references[role_of(name)])
        yield "", f"{in_bytes(free_bytes(cache.folder))} free there"


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _trained(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _operations(plan: Plan, policy: Policy, read: float, scored: float) -> float:
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
    passes = 2 * extra_forward_passes(plan.design)
    longer = {
        role: sum(map(len, rows)) / max(1, sum(map(len, plan.prepared.train))) for role, rows in plan.hinted.items()
    }
    of_live = 2 * sum((size - head) * longer.get(role, 1) for role, size in live.items()) * read
    of_heads = 2 * (len(live) + len(whole)) * head * scored
    return (of_trunk + passes * trunk) * read + (of_head * head + passes * head) * scored + of_live + of_heads


def _live(plan: Plan) -> dict[str, int]:
    """Role → weights of the model that runs beside the policy."""
    vocab, nodes = len(plan.tokenizer), plan.cfg.references
    live = {
        role: _size(provide.outline(source, vocab))
        for role, source in plan.references.items()
        if nodes[role].RUNS_BESIDE
    }
    apart = "prior" in live and "prior" in needs(plan.design) and build.has_flaw(plan, "prior")
    return live | ({HELDOUT: live["prior"]} if apart and plan.cfg.eval.kl_prior and plan.prepared.heldout else {})


def _memory(plan: Plan, policy: Policy) -> int:
    """Bytes on each device: all of it, but under fsdp2 only a share of the policy."""
    shares = plan.cfg.trainer.processes if plan.cfg.trainer.strategy == "fsdp2" else 1
    width = DTYPES[plan.cfg.model.dtype].itemsize
    copies = sum(_copy(plan, role_of(name)) for name in _live(plan))
    optimizer = OPTIMIZER_BYTES + (width if plan.optim.update_norm else 0)  # it copies the weights of a step
    of_policy = width * _size(policy) + optimizer * _trained(policy)
    return of_policy // shares + copies + 4 * CHUNK_BYTES


def _copy(plan: Plan, role: str) -> int:
    """Bytes on each device of a reference's own weights.

    Of one that is spread or offloaded embeddings, last norm and head are whole there while the loss reads the head, and
    one layer while it is read.
    """
    node, trainer = plan.cfg.references[role], plan.cfg.trainer
    if not node.HOLDS_A_COPY:
        return 0
    model = provide.outline(plan.references[role], len(plan.tokenizer))
    narrow = set(map(id, linear_weights(model))) if trainer.is_mixed and isinstance(node, FrozenReference) else set()
    width = DTYPES[node.dtype].itemsize
    held = {weight: 2 if id(weight) in narrow else width for weight in model.parameters()}
    sizes = {weight: each * weight.numel() for weight, each in held.items()}
    layers = [sum(sizes[weight] for weight in layer.parameters()) for layer in decoder_layers(model)]
    in_layers, total = sum(layers), sum(sizes.values())
    if isinstance(node, FrozenReference) and node.offload and trainer.on_gpu:
        return total - in_layers + max(layers)
    if isinstance(node, PlacedReference) and node.is_sharded(trainer):
        return total - in_layers + max(layers) + in_layers // trainer.processes
    return total


def in_count(number: float) -> str:
    """1234567 → 1.2 million."""
    for unit in ("", " thousand", " million", " billion", " trillion"):
        if number < 1000:
            return f"{number:.{1 if unit else 0}f}{unit}"
        number /= 1000
    return f"{number:.1f} quadrillion"

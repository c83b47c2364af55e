"""(e) What share of the machine's own matrix-product rate a whole training step reaches, and where its time goes."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import timing
import torch
from steps import ROWS, Trained, autocast, device, engine, trained
from table import Row, Section
from torch.profiler import ProfilerActivity, profile

from qtarget.data.batch import Batch
from qtarget.math.loss import IGNORE

SIDE = 2048
PARTS = ("trunk", "attention", "head")
KINDS = {
    "optimizer": ("_fused_adamw", "adamw"),
    "clipping": ("_foreach_norm", "_foreach_mul", "linalg_vector_norm", "stack"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "matrix products": (
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::matmul",
        "aten::linear",
        "mkldnn",
        "aten::baddbmm",
    ),
    "casts and copies": ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::contiguous", "aten::cat"),
    "allocation": ("aten::empty", "aten::fill_", "aten::zero_", "aten::resize"),
    "loss, compiled": ("graph_", "compiledfunction", "torch-compiled"),
    "softmax": ("softmax", "logsumexp"),
    "indexing": ("index", "gather", "scatter", "embedding", "aten::slice", "aten::select"),
    "reductions": ("aten::sum", "aten::mean", "aten::max", "aten::any", "aten::all", "aten::topk", "aten::amax"),
    "elementwise": (
        *("aten::mul", "aten::add", "aten::sub", "aten::div", "aten::neg", "aten::pow", "aten::rsqrt", "aten::silu"),
        *(
            "aten::exp",
            "aten::log",
            "aten::sin",
            "aten::cos",
            "aten::where",
            "aten::clamp",
            "aten::isfinite",
            "aten::eq",
        ),
        *("aten::ne", "aten::masked_fill", "aten::dot", "aten::abs", "aten::bitwise", "aten::isnan", "aten::logical"),
    ),
}
"""Kind of work → how the names of its operators begin, or what stands in them. The first kind that fits, counts."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a training step: 2 a multiply-add, the backward twice the forward."""

    trunk: float  # 6 · parameters of the decoder's matrices · real tokens
    attention: float  # 6 · layers · heads · head size · Σ length² (2 products, of which causality leaves half)
    head: float  # 6 · supervised tokens · D · V

    @property
    def total(self) -> float:
        return self.trunk + self.attention + self.head


def flops(lm: Any, batch: Batch, pad_id: int) -> Flops:
    """Of the policy's own forward and backward; what padding costs counts as time, not as work."""
    config, supervised = lm.config, int((batch.labels != IGNORE).sum())
    lengths = (real_positions(batch, pad_id)).sum(-1).double()
    layers = config.num_hidden_layers * config.num_attention_heads * head_size(config)
    return Flops(
        trunk=6 * trunk_parameters(lm) * batch.real_tokens,
        attention=6 * layers * float((lengths**2).sum()),
        head=6 * supervised * config.hidden_size * config.vocab_size,
    )


def real_positions(batch: Batch, pad_id: int) -> torch.Tensor:
    """[B, T] bool: all but the padding on the right, whose id may also end a row's turns."""
    real = batch.input_ids != pad_id
    real[:, 1:] |= batch.labels[:, :-1] != IGNORE
    return real.flip(-1).cumsum(-1).flip(-1) > 0


def head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def trunk_parameters(lm: Any) -> int:
    """Entries of the decoder's weight matrices: neither embeddings, which are looked up, nor norms."""
    layers: Iterable[torch.Tensor] = lm.get_decoder().layers.parameters()
    return sum(parameter.numel() for parameter in layers if parameter.ndim == 2)


def product_rate(rows: int, inner: int, columns: int, tries: int = 15) -> float:
    """Operations a second of a bf16 product [rows, inner] @ [columns, inner]ᵀ: the best of several."""
    left = torch.randn(rows, inner, device=device()).bfloat16()
    right = torch.randn(columns, inner, device=device()).bfloat16()
    best = min(timing.seconds(lambda: left @ right.T) for _ in range(tries))
    return 2 * rows * inner * columns / best


def own_products_rate(lm: Any, tokens: int) -> float:
    """The rate at which this machine takes the decoder's own products, forward and both of the backward."""
    shapes = [tuple(weight.shape) for weight in lm.get_decoder().layers[0].parameters() if weight.ndim == 2]
    work = spent = 0.0
    for out, inner in shapes:
        for sizes in ((tokens, inner, out), (tokens, out, inner), (out, tokens, inner)):
            operations = 2.0 * tokens * out * inner
            work, spent = work + operations, spent + operations / product_rate(*sizes, tries=7)
    return work / spent


def measure(overrides: Sequence[str], rounds: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Rates beside the machine's own; a step's time by phase and by kind of work. Every step takes the same batch."""
    step = trained(overrides)
    batch = next(step.batches)
    step.batches = itertools.repeat(batch)
    taken = timing.in_turn({"step": step}, rounds, title="(e) training step", warm=3)["step"]
    return rates(step, batch, statistics.median(taken)), phases(step, batch, rounds), kinds(step)


def rates(step: Trained, batch: Batch, seconds: float) -> list[Row]:
    """Operations a second: the machine's best, the model's own products one by one, and the whole step."""
    lm, positions = step.module.policy.lm, batch.input_ids.numel()
    done = flops(lm, batch, int(step.plan.tokenizer.pad_token_id))
    peak, products, reached = product_rate(SIDE, SIDE, SIDE), own_products_rate(lm, positions), done.total / seconds
    return [
        {"what": f"bf16 product, {SIDE}³, best of several", "GFLOP/s": peak / 1e9, "share": 1.0},
        {"what": "the decoder's own products, one by one", "GFLOP/s": products / 1e9, "share": products / peak},
        {
            "what": f"a training step, loss {step.said}",
            "GFLOP/s": reached / 1e9,
            "share": reached / peak,
            "aim": "≥ 0.5",
            "s/step": seconds,
        },
        {"what": "real tokens among the batch's positions", "share": batch.real_tokens / positions},
        *({"what": f"the step's operations: {part}", "share": getattr(done, part) / done.total} for part in PARTS),
    ]


def phases(step: Trained, batch: Batch, rounds: int) -> list[Row]:
    """Median seconds of each phase; the loss is what is left of the step's forward beside the decoder's own."""
    taken: dict[str, list[float]] = {}

    def lap(name: str, work: timing.Step) -> Any:
        found: list[Any] = []
        taken.setdefault(name, []).append(timing.seconds(lambda: found.append(work())))
        return found[0]

    for _ in range(rounds):
        lap("decoder alone", lambda: decoder(step, batch))
        loss = lap("forward and loss", lambda: step.loss(batch))
        lap("backward", loss.backward)
        lap("clipping", step.clip)
        lap("optimizer", step.update)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    medians["loss"] = medians.pop("forward and loss") - medians["decoder alone"]
    total = sum(medians.values())
    return [{"phase": name, "s": value, "share": value / total} for name, value in medians.items()]


def decoder(step: Trained, batch: Batch) -> None:
    with autocast():
        step.module.policy(batch.input_ids.to(step.device))


def kinds(step: Trained) -> list[Row]:
    """Share of a profiled step's time by kind of work, and the operators that take most of each."""
    with profile(activities=activities()) as profiler:
        for _ in range(2):
            step()
            timing.wait()
    found = profiler.key_averages()
    spent: dict[str, Counter[str]] = {}
    for event in found:
        spent.setdefault(kind_of(event.key), Counter())[event.key] += own_time(event)
    total = sum(counter.total() for counter in spent.values())
    ordered = sorted(spent.items(), key=lambda item: -item[1].total())
    return [
        {"kind": kind, "share": counter.total() / total, "mostly": told(counter, total)} for kind, counter in ordered
    ]


def activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CUDA] if torch.cuda.is_available() else [ProfilerActivity.CPU]


def own_time(event: Any) -> float:
    """Microseconds in the operator itself: on the device where there is one."""
    return float(event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total)


def kind_of(name: str) -> str:
    lowered = name.lower()
    return next((kind for kind, signs in KINDS.items() if any(sign in lowered for sign in signs)), "other")


def told(counter: Counter[str], total: float) -> str:
    return ", ".join(f"{name.removeprefix('aten::')} {count / total:.1%}" for name, count in counter.most_common(3))


def section(quick: bool) -> Section:
    rows = ROWS[0]
    overrides = ("target=sft", *rows.overrides, *engine(quick))
    found = measure(overrides, 3 if quick else 9)
    captions = (rates_caption(rows.batch_size), *WHERE)
    return Section("e", "Share of the machine's matrix-product rate", list(zip(captions, found, strict=True)))


WHERE = (
    "Where the time of such a step goes, by phase.",
    "The same by kind of work: `torch.profiler`, time in the operators themselves.",
)


def rates_caption(batch_size: int) -> str:
    return (
        "A whole optimizer step of plain SFT (forward, loss, backward, clipping, AdamW), SmolLM2-135M, "
        f"bf16-mixed, {batch_size} rows of `data=gsm_symbolic`. Operations: 6·(decoder's matrices)·(real "
        "tokens) + 6·layers·heads·(head size)·Σ length² + 6·(supervised tokens)·D·V, so that padding, casts, "
        "norms, the optimizer and everything else count as time and not as work."
    )

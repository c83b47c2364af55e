"""`qtarget doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from qtarget.errors import QTargetError
from qtarget.units import in_bytes


def doctor() -> int:
    """Print the facts; 0 where everything that training needs is there, 1 otherwise."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="qtarget doctor", show_header=False)
    missing = []
    for name, fact, remedy in facts():
        table.add_row("[red]✗[/]" if remedy else "[green]✓[/]", name, fact if not remedy else f"{fact}\n→ {remedy}")
        missing += [name] if remedy else []
    console = Console()
    console.print(table)
    console.print(
        f"missing: {', '.join(missing)}" if missing else "ready; next: qtarget train model=tiny trainer.max_steps=5"
    )
    return 1 if missing else 0


def facts() -> Iterator[tuple[str, str, str]]:
    """(what, what is, what to do about it or "")."""
    from qtarget.record.record import versions

    yield "python", f"{platform.python_version()} on {platform.platform()}", ""
    yield "packages", ", ".join(f"{name} {version}" for name, version in versions().items()), ""
    yield "device", *_device()
    yield "output layer", _output_layer(), ""
    yield "compiled loss", _compiled_loss(), ""
    yield "model", *_model()
    yield "cache", *_writable(_cache(), "set QTARGET_CACHE to a folder you can write")
    yield "outputs", *_outputs(Path("outputs"), "set output_dir=FOLDER")
    yield "W&B", _wandb(), ""


def _device() -> tuple[str, str]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return ", ".join(names), ""
    return f"CPU, {torch.get_num_threads()} threads ({torch.backends.cpu.get_cpu_capability()})", ""


def _output_layer() -> str:
    """What its products and its loss go through on a CPU, which the processor decides."""
    from qtarget.train.compiling import compiler
    from qtarget.train.fp32_products import in_words

    compiling = (
        f"loss.compile would use {path}" if (path := compiler()) else "no C++ compiler, so the loss runs eagerly"
    )
    return f"on a CPU products in {in_words()}; {compiling}"


def _compiled_loss() -> str:
    import torch

    from qtarget.train.compiling_figures import in_words

    return in_words(on_gpu=torch.cuda.is_available())


def _model() -> tuple[str, str]:
    from qtarget.model import builtin

    if (builtin.converted_dir() / "config.json").is_file():
        return f"smollm2_135m: converted, in {builtin.converted_dir()}", ""
    source = builtin.packaged_file()
    if source:
        return f"smollm2_135m: {source.name} in the package {builtin.PACKAGE}, converted on first use", ""
    return (
        f"smollm2_135m: not here, {builtin.HUB_ID} would be asked of the hub",
        f"to go without a hub: {builtin.INSTALL}",
    )


def _cache() -> Path:
    from qtarget.files import cache_dir

    return cache_dir()


def _writable(folder: Path, remedy: str) -> tuple[str, str]:
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    ok = nearest.is_dir() and os.access(nearest, os.W_OK)
    free = in_bytes(shutil.disk_usage(nearest).free)
    return f"{folder}, {free} free", "" if ok else f"not writable: {remedy}"


def _outputs(folder: Path, remedy: str) -> tuple[str, str]:
    """With what `qtarget train` would write there."""
    from qtarget.model import builtin

    fact, missing = _writable(folder, remedy)
    if missing or not (builtin.converted_dir() / "config.json").is_file():
        return fact, missing
    from qtarget.config.composing import instantiate_design
    from qtarget.config.run_config import RunConfig
    from qtarget.run.disk import check_room, disk_use

    try:
        cfg = RunConfig.compose()  # of ./conf, too
        use = disk_use(cfg, instantiate_design(cfg.target))
    except QTargetError:
        return fact, ""
    try:
        return f"{fact}; `qtarget train` {use.in_words}{'; ' * bool(little := check_room(use, folder))}{little}", ""
    except QTargetError as error:
        return fact, f"`qtarget train` has no room: {error}"


def _wandb() -> str:
    key = "a key is set" if os.environ.get("WANDB_API_KEY") else "no WANDB_API_KEY"
    return f"off unless tracker=wandb (then offline unless tracker.mode=online); {key}"

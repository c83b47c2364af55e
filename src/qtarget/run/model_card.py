"""The README.md of an exported model: what it was trained from, by which design, on what, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from qtarget.compare.formats import Table
from qtarget.compare.groups import kept_interval
from qtarget.config.derived import derived
from qtarget.model import builtin
from qtarget.model.fingerprint import names_a_folder
from qtarget.model.provide import SMOLLM2
from qtarget.record.record import stored_result
from qtarget.record.runs import Run, read_run, without_absolute_paths

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SNAPSHOT = re.compile(r"[/\\]models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\]")
"""A model in huggingface_hub's cache."""
CARD = "README.md"
LICENCE = ("license", "license_name", "license_link")
"""Keys of a card; the first is needed, and names one of the hub's list or "other"."""
TRAINING = ("train/", "target/", "detection/", "reference/")
"""What the names of metrics begin with that say nothing about the finished model."""
ENDS = ("_low", "_high")


def model_card(folder: Path, title: str) -> str:
    """Markdown with the front matter of Hugging Face's model cards. folder: of a finished run; title: the model's name.

    Names no folder of the machine.
    """
    run, result = read_run(folder, datetime.now(UTC)), stored_result(folder) or {}
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    named = str(result.get("model") or run.choices.get("model"))
    base, licence = _public_name(config, named), _licence(named)
    sections = {
        "Design": _facts(_design(run, config)),
        "Training": _facts(_training(run, result, config, base)),
        "Results": _results(run),
        "Use": _use(title),
        "Made with": f"```sh\n{run.shareable_command}\n```\n\n{_facts(_versions(run))}",
    }
    head = f"---\n{_front_matter(run, config, base, licence)}---\n\n# {title}\n\n{_summary(run, base, licence)}\n"
    return head + "".join(f"\n## {name}\n\n{text}" for name, text in sections.items())


def _front_matter(run: Run, config: Mapping[str, Any], base: str, licence: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    source = (config.get("data") or {}).get("source") or {}
    data = str(source.get("path"))
    card: Any = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base if _is_hub_id(base) else None,
        datasets=[data] if _is_hub_id(data) else None,
        tags=["qtarget", "sft", *[run.choices["target"]] * ("target" in run.choices)],
        **licence,
    )
    return f"{card.to_yaml()}\n"


def _licence(base: str) -> dict[str, str]:
    """What the card beside a base model says of its licence; nothing where no card lies on this machine.

    base: a folder, or an id whose card may be in the hub's cache.
    """
    from huggingface_hub import metadata_load, try_to_load_from_cache

    cached = try_to_load_from_cache(base, CARD) if _is_hub_id(base) else None
    card = Path(cached) if isinstance(cached, str) else Path(base).expanduser() / CARD
    try:
        held = (metadata_load(card) if card.is_file() else None) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # a card of another form says nothing that can be carried on
    named = {key: held[key] for key in LICENCE if isinstance(held.get(key), str)}
    return named if LICENCE[0] in named else {}


def _public_name(config: Mapping[str, Any], base: str) -> str:
    """The id on the hub of a model that came in a package, or lies in the hub's own cache; else the name as it is."""
    if (config.get("model") or {}).get("name") == SMOLLM2:
        return builtin.HUB_ID
    cached = SNAPSHOT.search(base)
    return f"{cached[1]}/{cached[2]}" if cached else base


def _is_hub_id(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not names_a_folder(name)


def _summary(run: Run, base: str, licence: Mapping[str, str]) -> str:
    design = run.choices.get("target", run.name)
    known = f", `{licence[LICENCE[0]]}`" if licence else ", which was not known where this card was written"
    return (
        f"{without_absolute_paths(base)} fine-tuned with the target design `{design}` by qtarget "
        f"{run.versions.get('qtarget', '')}. The licence is that of the model it was trained from{known}."
    )


def _design(run: Run, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    target = config.get("target") or {}
    about, origin = target.get("about") or {}, derived(target)
    yield "name", run.choices.get("target", run.name)
    if origin:
        yield "derived from", str(origin)
    of = f" of {origin.name}" if origin else ""
    for key, title in (("formula", "formula"), ("paper", "paper"), ("differs", "differs from the official code")):
        if about.get(key):
            yield f"{title}{of}", str(about[key])
    for key, title in (("reliance", "reliance γ"), ("residual", "residual π̃"), ("weight", "weight w")):
        if run.design.get(key):
            yield title, run.design[key]
    if run.design.get("repr"):
        yield "as run", run.design["repr"]


def _training(run: Run, result: Mapping[str, Any], config: Mapping[str, Any], base: str) -> Iterator[tuple[str, str]]:
    yield "from", without_absolute_paths(base)
    yield "data", without_absolute_paths(f"{run.choices.get('data', '')}: {result.get('data', '')}")
    wrong = f", {run.rows['noisy']:,} of them made wrong" if run.rows.get("noisy") else ""
    yield "rows", f"{run.rows.get('train', 0):,} trained on{wrong}; {run.rows.get('heldout', 0):,} held out"
    trainer, optim = config.get("trainer") or {}, config.get("optim") or {}
    per_step = int(trainer.get("batch_size") or 1) * int(trainer.get("accumulate") or 1)
    yield "steps", f"{result.get('steps')} of {per_step} rows a device"
    if optim.get("lr") is not None:
        yield "learning rate", f"{optim['lr']:g}"
    if (adapter := run.choices.get("model/adapter", "none")) != "none":
        yield "adapter", f"{adapter}, merged"
    yield "seed", str(run.seed)


def _results(run: Run) -> str:
    lines = [[name, _value(value), _interval(run, name)] for name, value in run.metrics.items() if _is_result(name)]
    if not lines:
        return "Nothing was measured.\n"
    note = f"Intervals are of 95 %, over the held-out rows or prompts ({run.rows.get('heldout', 0):,} rows)."
    return Table(("metric", "value", "interval"), lines, (False, True, True), note).markdown()


def _is_result(name: str) -> bool:
    return not name.startswith(TRAINING) and not name.endswith(ENDS)


def _interval(run: Run, name: str) -> str:
    ends = [run.metrics.get(f"{name}{end}") for end in ENDS]
    if None in ends and (interval := kept_interval(run.folder, name)):
        ends = [interval.low, interval.high]
    return "" if None in ends else f"[{', '.join(_value(end) for end in ends if end is not None)}]"


def _value(value: float) -> str:
    return f"{value:.4g}"


def _use(title: str) -> str:
    return f"""```python
from transformers import pipeline

generate = pipeline("text-generation", model="{title}")
print(generate([{{"role": "user", "content": "…"}}])[0]["generated_text"][-1]["content"])
```
"""


def _versions(run: Run) -> Iterator[tuple[str, str]]:
    yield from run.versions.items()
    if run.git:
        yield "git commit", run.git


def _facts(facts: Iterator[tuple[str, str]]) -> str:
    return Table(("", ""), [list(fact) for fact in facts]).markdown()

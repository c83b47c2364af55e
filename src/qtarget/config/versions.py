"""Changes of results between versions of qtarget: which runs get other numbers now, and so another identity.

All other runs keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qtarget.config.changed_inputs import (
    has_other_conversations,
    is_read_as_pattern,
    named_head_changed,
    names_a_pattern,
    reads_retyped_files,
)
from qtarget.config.changed_rows import (
    reads_functions,
    reads_new_keys,
    reads_spans_beside_messages,
    reads_spans_of_messages,
)
from qtarget.config.heldout_changes import shares_otherwise
from qtarget.config.names import model_nodes, nodes
from qtarget.data.thought import MARKS

Node = Mapping[str, Any]


@dataclass(frozen=True)
class ResultChange:
    """A part that gives other numbers than an earlier build did.

    part, version: what enters the identity. about: what changed, in words that a table can print. concerns(config):
    whether the resolved configuration, before names of files are replaced by their content, is one whose numbers
    changed; True where that can't be told.
    """

    part: str
    version: int
    about: str
    concerns: Callable[[Node], bool]


HASH_ORDERED = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")
"""Tasks of reasoning-gym 0.1.25 that draw from a set of texts, whose order is another one in every process."""


def sources(node: Node) -> Iterator[dict[str, Any]]:
    """The sources of data in a node, and those that they are made of."""
    for value in [value for value in node.values() if isinstance(value, dict)]:
        if "_target_" in value:
            yield value
        yield from sources(value)


def _generated(config: Node) -> list[dict[str, Any]]:
    return [node for node in sources(config) if str(node["_target_"]).endswith(".ReasoningGym")]


def _has_another_seed(config: Node) -> bool:
    return any(node.get("seed") for node in _generated(config))


def _is_hash_ordered(config: Node) -> bool:
    tasks = {task for node in _generated(config) for task in (node.get("task"), *(node.get("tasks") or {}))}
    return not tasks.isdisjoint(HASH_ORDERED)


def _has_new_keys(config: Node) -> bool:
    return any(map(reads_new_keys, sources(config)))


def _offers_functions(config: Node) -> bool:
    return any(map(reads_functions, sources(config)))


def _weighs_spans_of_messages(config: Node) -> bool:
    return any(map(reads_spans_of_messages, sources(config)))


def _weighs_spans_beside_messages(config: Node) -> bool:
    return any(map(reads_spans_beside_messages, sources(config)))


def _judged(config: Node) -> list[dict[str, Any]]:
    """The sources whose rows are asked and judged: those of held-out rows and benchmarks, and what they are made of."""
    data, node = config["data"], config["eval"]
    own = data.get("heldout_source")
    source = own if isinstance(own, dict) else data.get("source")  # a file is judged as the source is
    nodes = {"heldout": source if data.get("heldout_rows") != 0 else None}
    benchmarks = node.get("benchmarks")
    if isinstance(benchmarks, dict):  # what else it may be set to is refused later, in words
        nodes |= {name: each.get("source") for name, each in benchmarks.items() if isinstance(each, dict)}
    return list(sources(nodes))


def _judges_mathematics(config: Node) -> bool:
    return any(source.get("verifier") == "math" for source in _judged(config))


def _judges_choices(config: Node) -> bool:
    return any(source.get("verifier") == "choice" for source in _judged(config))


def _judges_thoughts(config: Node) -> bool:
    """Where the data say that replies think, which is all that a configuration tells of it."""
    judged = any(source.get("verifier") in ("choice", "exact") for source in _judged(config))
    return judged and any(opened in repr(config["data"]) for opened, _ in MARKS)


def _has_another_head(config: Node) -> bool:
    names = [node.get("name") for node in model_nodes(config)]
    return any(isinstance(name, str) and named_head_changed(name) for name in names)


def _is_retyped(config: Node) -> bool:
    return any(map(reads_retyped_files, sources(config)))


def _is_named_as_a_pattern(config: Node) -> bool:
    own = config["data"].get("heldout_source")
    return any(map(names_a_pattern, sources(config))) or (isinstance(own, str) and is_read_as_pattern(own))


def _divides_by_a_truncated_mass(config: Node) -> bool:
    target = config.get("target") or {}
    objective = target.get("objective") or {}
    truncated = str(objective.get("_target_")).endswith(".SupportKL") and not objective.get("renormalised", True)
    return truncated and target.get("normalize") == "weight_sum"


def _is_tested_rounded(config: Node) -> bool:
    """Where a checkpoint is saved in a smaller dtype than it was trained in; `qtarget evaluate` only reads one."""
    checkpoint, model = config.get("checkpoint"), config["model"]
    if not isinstance(checkpoint, dict):  # that it may not be set to a value is said later, in words
        return False
    only_reads = config["trainer"].get("max_steps") == 0 and config["data"].get("rows") == 0
    is_fp32 = bool(model.get("adapter")) or model.get("dtype", "float32") == "float32"
    return bool(checkpoint.get("save")) and checkpoint.get("dtype") == "bfloat16" and is_fp32 and not only_reads


def _cuts_taught_prompts(config: Node) -> bool:
    return config["data"].get("truncation") == "cut" and bool(config["data"].get("prompt_weight"))


RESULT_CHANGES: tuple[ResultChange, ...] = (
    ResultChange(
        "chat",
        2,
        "a reply's context is what is asked: word marks, dates, ends of turn, control tokens",
        has_other_conversations,
    ),
    ResultChange("head", 2, "logits have every multiplier and cap of the model's own", _has_another_head),
    ResultChange("files", 2, "CSV and JSON files are read as the text they hold", _is_retyped),
    ResultChange(
        "rows", 2, "weights, tools, calls, thoughts, names, system and history of rows are read", _has_new_keys
    ),
    ResultChange(
        "mass", 2, "the weights of kd_truncated add up to what its teacher kept", _divides_by_a_truncated_mass
    ),
    ResultChange("generated", 2, "reasoning-gym's problems are the same in every process", _is_hash_ordered),
    ResultChange(
        "seeds", 2, "seeds of reasoning-gym's problems lie apart, and share no runs of problems", _has_another_seed
    ),
    ResultChange("verdict", 2, "mathematical answers are compared exactly", _judges_mathematics),
    ResultChange("choice", 2, "a key with another option's text, and what is denied, choose nothing", _judges_choices),
    ResultChange(
        "heldout",
        2,
        "rows behind data.heldout_rows are trained on; a share holds out one row at least",
        shares_otherwise,
    ),
    ResultChange("names", 2, "a Parquet file is read by its name, whatever signs are in it", _is_named_as_a_pattern),
    ResultChange("functions", 2, "the functions beside messages are the tools of a row", _offers_functions),
    ResultChange("spans", 2, "the weights of spans of messages are read", _weighs_spans_of_messages),
    ResultChange("columns", 2, "span_weights beside a column of messages are read", _weighs_spans_beside_messages),
    ResultChange("cut", 2, "rows that are cut within a taught prompt are left out", _cuts_taught_prompts),
    ResultChange("thought", 2, "what stands in a thought is no answer", _judges_thoughts),
    ResultChange("rounded", 2, "what is tested is the checkpoint as it is rounded on disk", _is_tested_rounded),
)
"""In no order; a part stands here once, with its newest version."""

LATER = {"shard": (None, False, True), "offload": (False, True), "draws": (64,), "seed": (0,), "hint": (None,)}
"""Keys of references: where weights lie, which changes no number; draws, which nobody took."""
STREAM = {"streaming": (False,), "shuffle_buffer": (0,)}

UNCHANGED: dict[str, dict[str, tuple[Any, ...]]] = {
    **{f"references.{role}": LATER for role in ("prior", "teacher", "old")},
    "trainer": {"rows_per_step": (None,)},
    "loss": {"products": ("auto",)},
    "data": {"prompt_weight": (0.0, 0)},
    "qtarget.model.adapter.Lora": {"options": ({},)},
    "qtarget.train.optim.AdamW": {"allow_bf16_rounding": (False, True)},
    "qtarget.data.sources.reasoning_gym.ReasoningGym": {"trust_scorer": (False,)},
    "qtarget.data.sources.hub.Hub": {
        "delimiter": (None,),
        "trust_scorer": (False,),
        "unknown": (None,),
        "tools": (None,),
        "weight": (None,),
        "columns": ([],),
        "hint": (None,),
        **STREAM,
    },
    "qtarget.data.sources.data_files.Files": {"hint": (None,), **STREAM},
    "qtarget.data.sources.jsonl.Jsonl": {
        "trust_scorer": (False,),
        "unknown": (None,),
        "heldout": (None,),
        "hint": (None,),
    },
    "qtarget.data.sources.instruct.Instruct": {"trust_scorer": (False,)},
}
"""Keys that came later: `_target_` of a node, or its dotted key → key → values that mean what earlier builds did."""


def versions(config: Node) -> dict[str, int]:
    """Part → version of every change that concerns a configuration."""
    return {change.part: change.version for change in RESULT_CHANGES if change.concerns(config)}


def outdated(config: Node, recorded: Mapping[str, int]) -> list[str]:
    """What has changed since a run with this configuration. recorded: the versions that its record names."""
    newer = [change for change in RESULT_CHANGES if recorded.get(change.part, 0) < change.version]
    return [change.about for change in newer if change.concerns(config)]


def without_unchanged(config: dict[str, Any]) -> None:
    """Take out of `config` keys that came later and stand at a value that changes nothing."""
    for dotted, node in nodes(config):
        for name in {dotted, str(node.get("_target_", ""))} & set(UNCHANGED):
            for key, values in UNCHANGED[name].items():
                if key in node and node[key] in values:
                    del node[key]

"""How strongly each token is taught: row weight × message weight × span weight, from the row to the gradient."""

from __future__ import annotations

import csv
import json
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import Tensor
from training import batches, close, eight_rows, module, one_step, tiny_policy

from qtarget.data.batch import Batch, Collate
from qtarget.data.chat import ChatFormat, encode
from qtarget.data.edit import Edit, edited
from qtarget.data.example import Demonstration, Example
from qtarget.data.in_files import InFiles
from qtarget.data.limits import cut_to
from qtarget.data.module import DataConfig, Prepared, prepare
from qtarget.data.noise import RandomToken
from qtarget.data.packing import pack
from qtarget.data.sources.data_files import Files
from qtarget.data.sources.jsonl import Jsonl
from qtarget.data.storage import InMemory
from qtarget.data.stream import prepare_stream
from qtarget.errors import QTargetError
from qtarget.math.loss import IGNORE
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.cache import Cached, CachePlan
from qtarget.model.cache_build import ensure
from qtarget.model.cached_scores import Recipe


def row(*replies: tuple[str, float | None], **known: Any) -> Demonstration:
    """A conversation with these replies and their weights."""
    messages: list[dict[str, Any]] = []
    for text, weight in replies:
        said = {"role": "assistant", "content": text}
        messages += [{"role": "user", "content": "2+2?"}, said if weight is None else {**said, "weight": weight}]
    return Demonstration(messages, row=1, **known)


def encoded(demonstration: Demonstration, supervise: str = "all") -> Example:
    result: Any = ChatFormat(tiny_tokenizer(), supervise).encode(demonstration)
    return result if isinstance(result, Example) else result[-1]


def taught(example: Example) -> list[tuple[str, float]]:
    """Supervised text, and the weight of each piece of the same weight."""
    tokenizer, before = tiny_tokenizer(), False
    pieces: list[tuple[list[int], float]] = []
    weights = example.weights or [float(flag) for flag in example.supervised]
    for token, weight in zip(example.input_ids, weights, strict=True):
        if weight and pieces and pieces[-1][1] == weight and before:
            pieces[-1][0].append(token)
        elif weight:
            pieces.append(([token], weight))
        before = bool(weight)
    return [(str(tokenizer.decode(ids)), weight) for ids, weight in pieces]


def test_a_reply_of_weight_0_is_context() -> None:
    example = encoded(row(("5", 0), ("4", 1)))
    assert taught(example) == [("4<|end|>", 1.0)]
    assert example.weights is None  # nothing but 0 and 1: the mask says it all
    assert "5<|end|>" in str(tiny_tokenizer().decode(example.input_ids))


def test_rows_without_weights_are_what_they_were() -> None:
    plain, ones = encoded(row(("5", None), ("4", None))), encoded(row(("5", 1), ("4", 1.0)))
    assert plain == ones
    assert plain.weights is None


def test_weights_of_row_message_and_span_multiply() -> None:
    example = encoded(row(("5", 0.5), ("44 55", None), weight=2.0, weights=((3, 5, 0.25),)))
    assert taught(example) == [("5<|end|>", 1.0), ("44 ", 2.0), ("55", 0.5), ("<|end|>", 2.0)]


def test_a_span_of_weight_0_is_context() -> None:
    example = encoded(row(("4 because", None), weights=((1, 9, 0.0),)))
    assert taught(example) == [("4", 1.0), ("<|end|>", 1.0)]
    assert [weight > 0 for weight in example.weights or map(float, example.supervised)] == list(example.supervised)


def test_of_spans_that_touch_one_token_the_largest_weight_counts() -> None:
    example = encoded(row(("44", None), weights=((0, 2, 0.5), (0, 1, 3.0))))
    assert taught(example)[0][1] == 3.0


def test_a_row_that_teaches_nothing_is_refused_with_its_number() -> None:
    with pytest.raises(QTargetError, match="row 1: no token to supervise"):
        encoded(row(("5", 0)))
    with pytest.raises(QTargetError, match="row 1: no token to supervise"):
        encoded(row(("5", 1), ("4", 0)), supervise="last")


def test_weights_stay_with_their_characters_when_noise_edits_the_reply() -> None:
    before = row(("the 42", None), weights=((4, 6, 3.0),))
    assert edited(before, [Edit(0, 0, "Well, ")]).weights == ((10, 12, 3.0),)
    assert edited(before, [Edit(4, 6, "17")]).weights == ((4, 6, 3.0),)
    assert edited(before, [Edit(3, 6, "")]).weights == ()


SPANNED = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "44 55 66", "weight": 0.5, "span_weights": [[3, 5, 0.25], [6, 8, 0]]},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "7 so 8", "span_weights": [[0, 1, 3]]},
]
SPANNED_TAUGHT = [("44 ", 1.0), ("55", 0.25), (" ", 1.0), ("<|end|>", 1.0), ("7", 6.0), (" so 8<|end|>", 2.0)]


def test_each_reply_of_a_conversation_has_its_own_spans() -> None:
    """A token of the tiny model is a byte: row weight 2 × message weight × span weight, and 1 where no span is."""
    row = Demonstration(SPANNED, row=1, weight=2.0)
    assert taught(encoded(row)) == SPANNED_TAUGHT
    assert taught(encoded(row, supervise="last")) == SPANNED_TAUGHT[-2:]
    plain = [{key: value for key, value in message.items() if key != "span_weights"} for message in SPANNED]
    assert encoded(row).input_ids == encoded(Demonstration(plain, row=1)).input_ids
    (given,) = encode(tiny_tokenizer(), SPANNED)
    assert [weight / 2 for _, weight in SPANNED_TAUGHT] == [weight for _, weight in taught(given)]


def test_spans_of_the_last_message_move_with_noise_and_those_of_others_stay() -> None:
    row = edited(Demonstration(SPANNED, row=1, weight=2.0), [Edit(0, 0, "Well, ")])
    assert row.weights == ((6, 7, 3),)
    wrong = [("44 ", 1.0), ("55", 0.25), (" ", 1.0), ("<|end|>", 1.0), ("Well, ", 2.0), ("7", 6.0)]
    assert taught(encoded(row)) == [*wrong, (" so 8<|end|>", 2.0)]


def test_where_each_turn_is_an_example_each_has_its_spans() -> None:
    """As Qwen3's template: a reply in history is written otherwise, and an example of its own before that."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'past ' if m['role'] == 'assistant' and not loop.last }}{{ m['role'] }}: "
        "{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    first, second = ChatFormat(tokenizer).encode(Demonstration(SPANNED, row=1, weight=2.0))
    assert (taught(first), taught(second)) == (SPANNED_TAUGHT[:4], SPANNED_TAUGHT[4:])


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("schema", ["messages", "conversations", "interactions", "prompt/completion", "column"])
def test_spans_of_messages_are_read_in_every_schema_of_messages(tmp_path: Path, schema: str, suffix: str) -> None:
    """Parquet holds the ends of spans as floats beside their weights, and null in the messages without any."""
    named = {"user": "human", "assistant": "gpt"}
    talk = [
        {"from": named[message["role"]], "value": message["content"], **message}
        if schema == "conversations"
        else message
        for message in SPANNED
    ]
    if schema == "conversations":
        talk = [{key: value for key, value in one.items() if key not in ("role", "content")} for one in talk]
    row: dict[str, Any] = {"weight": 2.0, ("talk" if schema == "column" else schema): talk}
    expected = SPANNED_TAUGHT
    if schema == "prompt/completion":  # of which the prompt is context
        row, expected = {"weight": 2.0, "prompt": talk[:3], "completion": talk[3:]}, SPANNED_TAUGHT[4:]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    (read,) = Files(str(path), heldout_share=0, messages="talk" if schema == "column" else None).rows("train", None)
    assert taught(encoded(read)) == expected


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[0, 9, 1]], r"messages\[1\]\.span_weights must hold .* over characters of that message, which has 8 char"),
        ([[0, 3, 1], [2, 4, 1]], r"messages\[1\]\.span_weights overlap at character 2"),
        ([[0, 2, -1]], "a span's weight must be a number of at least 0, got '-1'"),
        ([[0, 2.5, 1]], r"messages\[1\]\.span_weights must hold"),
    ],
)
def test_spans_of_a_message_that_are_none_are_refused_with_its_name(tmp_path: Path, spans: Any, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [SPANNED[0], {**SPANNED[1], "span_weights": spans}]}))
    with pytest.raises(QTargetError, match=message):
        Jsonl(str(path), heldout_share=0).rows("train", None)


def test_spans_of_a_row_and_of_its_last_message_are_two_of_one_thing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": SPANNED, "span_weights": [[0, 1, 2]]}))
    with pytest.raises(QTargetError, match="line 1: the row has span_weights and so has its last message"):
        Jsonl(str(path), heldout_share=0).rows("train", None)
    path.write_text(json.dumps({"messages": [{**SPANNED[0], "span_weights": [[0, 1, 2]]}, SPANNED[3]]}))
    with pytest.raises(QTargetError, match=r"messages\[0\]\.span_weights is not read"):
        Jsonl(str(path), heldout_share=0).rows("train", None)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_column_of_spans_beside_a_column_of_messages_is_read(tmp_path: Path, suffix: str) -> None:
    """The second row has none; ends are floats in Parquet, and a cell of CSV is JSON text."""
    talk = [SPANNED[0], {"role": "assistant", "content": "44 55"}]
    given = [{"talk": talk, "span_weights": [[3, 5, 0.25]]}, {"talk": talk, "span_weights": None}]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in given))
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given), path)
    else:
        cells = [["" if cell is None else json.dumps(cell) for cell in row.values()] for row in given]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(given[0]), *cells])
    first, second = Files(str(path), heldout_share=0, messages="talk").rows("train", None)
    assert taught(encoded(first)) == [("44 ", 1.0), ("55", 0.25), ("<|end|>", 1.0)]
    assert taught(encoded(second)) == [("44 55<|end|>", 1.0)]


@pytest.mark.parametrize(
    ("spans", "message"), [(5, "must hold"), ([[0, 99, 1]], "of the last message, which has 6 characters")]
)
def test_spans_beside_a_column_of_messages_are_checked(tmp_path: Path, spans: Any, message: str) -> None:
    talk = [SPANNED[0], {"role": "assistant", "content": "7 so 8"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"talk": talk}, {"talk": talk, "span_weights": spans})))
    with pytest.raises(QTargetError, match=rf"row 2 of train \(rows.jsonl, line 2\): span_weights.*{message}"):
        Files(str(path), heldout_share=0, messages="talk").rows("train", None)


@pytest.mark.parametrize("how", ["replace", "insert"])
def test_random_tokens_keep_the_weights_beside_their_tokens(how: str) -> None:
    example = encoded(row(("5 and 6 and 7", 0.5), ("4", 2.0)))
    (spoilt,) = RandomToken(rate=0.5, how=how, seed=1).tokens([example], ChatFormat(tiny_tokenizer()))
    assert spoilt.weights is not None
    assert len(spoilt.weights) == len(spoilt.input_ids) == len(spoilt.supervised)
    assert [weight > 0 for weight in spoilt.weights] == list(spoilt.supervised)
    kept = [
        (token, weight)
        for token, weight, wrong in zip(spoilt.input_ids, spoilt.weights, spoilt.wrong, strict=True)
        if not wrong
    ]
    whole = list(zip(example.input_ids, example.weights or (), strict=True))
    assert all(pair in whole for pair in kept)


# Prompts


PROMPTS_TAUGHT = ChatFormat(tiny_tokenizer(), prompt_weight=0.25)


def test_a_prompt_weight_teaches_what_stands_before_a_reply() -> None:
    talk = row(("5", None), ("44", 2.0), weight=0.5)
    (example,) = PROMPTS_TAUGHT.encode(talk)
    plain = encoded(talk)
    weights = example.weights or []
    assert (example.input_ids, example.columns) == (plain.input_ids, plain.columns)
    assert all(example.supervised)
    expected = [weight or 0.125 for weight in plain.weights or []]
    assert list(weights) == expected
    assert {*weights} == {0.125, 0.5, 1.0}


def test_a_prompt_weight_of_1_is_a_mask_and_of_0_none() -> None:
    (example,) = ChatFormat(tiny_tokenizer(), prompt_weight=1.0).encode(row(("5", None)))
    assert (example.weights, all(example.supervised)) == (None, True)
    assert ChatFormat(tiny_tokenizer(), prompt_weight=0.0).encode(row(("5", 0.5))) == [encoded(row(("5", 0.5)))]


def test_spans_of_weight_0_stay_context_beside_taught_prompts() -> None:
    (example,) = PROMPTS_TAUGHT.encode(row(("4 because", None), weights=((1, 9, 0.0),)))
    assert taught(example)[-2:] == [("4", 1.0), ("<|end|>", 1.0)]


def test_a_reply_of_spans_of_weight_0_teaches_its_end_whatever_prompts_have() -> None:
    """The end of turn is in no span: context as a whole is a reply whose own weight is 0, and its row is left out."""
    nothing = row(("4 because", None), weights=((0, 9, 0.0),))
    assert taught(encoded(nothing)) == [("<|end|>", 1.0)]
    (example,) = PROMPTS_TAUGHT.encode(nothing)
    assert [weight for _, weight in taught(example)] == [0.25, 1.0]
    for chat in (ChatFormat(tiny_tokenizer()), PROMPTS_TAUGHT):
        with pytest.raises(QTargetError, match="row 1: no token to supervise"):
            chat.encode(row(("4 because", 0)))


def test_the_last_reply_alone_has_the_others_in_its_prompt() -> None:
    talk = row(("5", 0), ("44", None))
    (example,) = replace(PROMPTS_TAUGHT, supervise="last").encode(talk)
    assert [weight for _, weight in taught(example)] == [0.25, 1.0]
    with pytest.raises(QTargetError, match="row 1: message 2 has the weight 0 and stands in a prompt"):
        PROMPTS_TAUGHT.encode(talk)


def test_prompts_that_would_be_taught_several_times_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
        "{{ 'past ' if m['role'] == 'assistant' and loop.index0 < ns.last }}{{ m['role'] }}: {{ m['content'] }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    talk = row(("5 and", None), ("44", None))
    assert len(ChatFormat(tokenizer).encode(talk)) == 2
    with pytest.raises(QTargetError, match=r"data\.prompt_weight would teach its prompts several times"):
        ChatFormat(tokenizer, prompt_weight=0.25).encode(talk)


def test_held_out_prompts_are_never_taught_and_random_tokens_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}+1?", "completion": str(number + 1)} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Jsonl(str(tmp_path / "rows.jsonl"), heldout_share=0.3)
    prepared, plain = (
        prepare(DataConfig(source, None, heldout_rows=None, prompt_weight=weight), tiny_tokenizer(), 1024)
        for weight in (0.2, 0.0)
    )
    assert prepared.heldout == plain.heldout
    assert prepared.heldout
    assert all(all(example.supervised) and 0.2 in (example.weights or ()) for example in prepared.train)
    files = Files(str(tmp_path / "rows.jsonl"), heldout_share=0.0, streaming=True)
    streamed = prepare_stream(DataConfig(files, None, heldout_rows=2, prompt_weight=0.2), tiny_tokenizer(), 1024, 0)
    assert {weight for example in streamed.train for weight in example.weights or ()} == {0.2, 1.0}
    assert all(example.weights is None and not all(example.supervised) for example in streamed.heldout)
    with pytest.raises(QTargetError, match=r"data\.prompt_weight teaches prompts, and this data\.noise"):
        DataConfig(source, rows=None, prompt_weight=0.2, noise=RandomToken(0.1))


def test_wit_is_a_prompt_weight_and_a_weight_of_all_tokens() -> None:
    """Weighted instruction tuning (arXiv 2507.07817): (λ_p·Σ_prompt nll + λ_r·Σ_reply nll)/tokens, λ = 0.2 and 0.8."""
    rows = [Demonstration(one.messages, row=one.row) for one in eight_rows().train_rows]
    lm = deepcopy(tiny_policy().lm).double().eval()
    total, count, examples = torch.zeros((), dtype=torch.float64), 0, []
    for one in rows:
        (plain,), (example,) = (ChatFormat(tiny_tokenizer(), prompt_weight=weight).encode(one) for weight in (0, 0.25))
        ids, is_reply = torch.tensor(plain.input_ids), torch.tensor(plain.supervised)[1:]
        nll = -lm(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        total = total + 0.2 * nll[~is_reply].sum() + 0.8 * nll[is_reply].sum()
        examples.append(replace(example, first_label=count))
        count += len(nll)
    loss = total / count
    loss.backward()
    expected = {f"lm.{key}": tensor.grad for key, tensor in lm.named_parameters() if tensor.grad is not None}
    for batch_size, accumulate in ((8, 1), (3, 3)):
        prepared = replace(eight_rows(), train=examples, rows=examples)
        micro = batches(prepared, batch_size=batch_size, accumulate=accumulate)
        gradient, _ = one_step(module("sft", {"weight.value": 0.8}), micro)
        close({key: value.double() for key, value in gradient.items()}, expected, 2e-4)


# Through batch, step and loss

THRESHOLD = 0.004  # about 1/V: an untrained policy gives some labels more, some less
DESIGNS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft by tokens": ("sft", {}),
    "dft by tokens": ("dft", {}),
    "dft by weight sum": ("dft", {"normalize": "weight_sum"}),
    "profit by kept": ("profit", {"reliance.threshold": THRESHOLD, "normalize": "kept"}),
    "sft by weight sum": ("sft", {"normalize": "weight_sum"}),
    "dft by sequences": ("dft", {"normalize": "sequences"}),
}
CUTS = [(8, 1, None), (3, 3, None), (1, 8, 240)]


def weighted_rows(packing: int | None = None) -> Prepared:
    """Eight rows: every third plain; others with a weight of their own, a part that is doubled, a token left out."""
    prepared = eight_rows()
    rows = [_weighted(example) if example.row % 3 else example for example in prepared.train]
    starts = [sum(row.labels for row in rows[:index]) for index in range(len(rows))]
    rows = [replace(row, first_label=start) for row, start in zip(rows, starts, strict=True)]
    return replace(prepared, train=rows, rows=pack(rows, packing) if packing else rows)


def _weighted(example: Example) -> Example:
    first = list(example.supervised).index(True)
    weights = [0.5 * (example.row % 5 + 1) * on for on in example.supervised]
    weights[first] = 0.0
    weights[first + 1] *= 2
    return replace(example, weights=weights, supervised=[weight > 0 for weight in weights])


def defined(design: str, prepared: Prepared) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one step in float64, row by row, as its definition says: (1/Z)·Σ_t d_t·loss_t, and its gradient."""
    name, changes = DESIGNS[design]
    lm = deepcopy(tiny_policy().lm).double().eval()
    rows = [_row_terms(lm, example, name) for example in prepared.train]
    loss, mass, weight = (torch.cat([row[term] for row in rows]) for term in range(3))
    divided = {
        "tokens": (weight * loss).sum() / (weight > 0).sum(),
        "kept": (weight * loss).sum() / ((mass > 0) & (weight > 0)).sum(),
        "weight_sum": (weight * loss).sum() / (weight * mass).sum(),
        "sequences": sum((d * per).sum() / (d > 0).sum() for per, _, d in rows) / len(rows),
    }[changes.get("normalize", "tokens")]
    total = torch.as_tensor(divided)
    total.backward()
    return total.detach(), {
        f"lm.{key}": tensor.grad for key, tensor in lm.named_parameters() if tensor.grad is not None
    }


def _row_terms(lm: Any, example: Example, design: str) -> tuple[Tensor, Tensor, Tensor]:
    """(loss_t, positive mass of Q times the design's weight, weight of the data) of the labels of one row."""
    ids = torch.tensor(example.input_ids)
    logp = lm(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    weight = torch.tensor(example.weights or [float(on) for on in example.supervised], dtype=torch.float64)[1:]
    p = logp.detach().exp()
    reliance = {"sft": torch.ones_like(p), "dft": p, "profit": (p >= THRESHOLD).double()}[design]
    kept = weight > 0
    return (-reliance * logp)[kept], reliance[kept], weight[kept]


@pytest.mark.parametrize("design", DESIGNS)
def test_a_weighted_step_is_its_definition_however_it_is_cut(design: str) -> None:
    """Micro-batches, a ragged one among them, packed rows, packed micro-batches."""
    value, gradient = defined(design, weighted_rows())
    for batch_size, accumulate, packing in CUTS:
        micro = batches(weighted_rows(packing), batch_size=batch_size, accumulate=accumulate)
        trained = module(*DESIGNS[design])
        scales = [trained.normalizer.for_batch(batch) for batch in micro]
        pairs = zip(micro, scales, strict=True)
        totals = [trained.token_loss(batch, scale.scope_values, scale.token_scale).total for batch, scale in pairs]
        window = micro[0].window
        assert window is not None
        assert float(sum(totals).detach()) / window.averaging_factor == pytest.approx(float(value), rel=1e-5)
        trained.zero_grad()
        (sum(totals) / window.averaging_factor).backward()
        got = {key: p.grad.double() for key, p in trained.policy.named_parameters() if p.grad is not None}
        close(got, gradient, 2e-4)


def test_weights_of_1_are_no_weights() -> None:
    ones = eight_rows()
    ones = replace(ones, rows=[replace(row, weights=[float(on) for on in row.supervised]) for row in ones.train])
    (plain,), (same,) = batches(eight_rows(), batch_size=8), batches(ones, batch_size=8)
    assert plain.weights is None
    assert same.weights is not None
    gradient, means = one_step(module("dft"), [plain])
    got, got_means = one_step(module("dft"), [same])
    close(got, gradient, 1e-6)
    assert got_means == pytest.approx(means)


def test_logged_means_count_every_taught_token_once_whatever_its_weight() -> None:
    """train/nll compares runs: it is a mean over the tokens of weight above 0, and no factor enters it."""
    prepared = weighted_rows()
    plain = replace(prepared, rows=[replace(row, weights=None) for row in prepared.train])
    _, means = one_step(module("dft"), batches(prepared, batch_size=4, accumulate=2))
    _, expected = one_step(module("dft"), batches(plain, batch_size=4, accumulate=2))
    assert means == pytest.approx(expected)


@pytest.mark.parametrize("packed", [False, True])
def test_weights_lie_beside_the_labels_they_belong_to(packed: bool) -> None:
    rows = weighted_rows().train
    batch: Batch = Collate(256)([tuple(rows)] if packed else rows)
    assert batch.weights is not None
    assert torch.equal(batch.weights > 0, batch.labels != IGNORE)
    by_label = dict(zip(batch.label_indices.flatten().tolist(), batch.weights.flatten().tolist(), strict=True))
    for row in rows:
        weights = row.weights or [float(on) for on in row.supervised]
        kept = [weight for weight, on in zip(weights[1:], row.supervised[1:], strict=True) if on]
        assert [by_label[row.first_label + index] for index in range(row.labels)] == pytest.approx(kept)


def test_a_cut_row_keeps_its_weights() -> None:
    whole = encoded(row(("4 and more", 0.5)))
    cut = cut_to(whole, len(whole) - 3)
    assert list(cut.weights or ()) == list(whole.weights or ())[:-3]
    assert [weight > 0 for weight in cut.weights or ()] == list(cut.supervised)


PAIR = {"prompt": "2+2?", "completion": "4"}


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_a_row_that_is_cut_within_its_prompt_is_left_out_and_counted(tmp_path: Path, weight: float) -> None:
    """A token of the tiny model is a byte: of a prompt of 50 characters no reply is left, whatever prompts weigh."""
    path = tmp_path / "rows.jsonl"
    given = [{"prompt": "p" * 50, "completion": "x"}, {"prompt": "q", "completion": "y" * 50}, PAIR]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in given))
    config = DataConfig(
        Files(str(path), heldout_share=0), None, 0, 0, max_length=40, truncation="cut", prompt_weight=weight
    )
    for storage in (InMemory(), InFiles(tmp_path)):
        prepared = prepare(config, tiny_tokenizer(), 1024, storage)
        assert [example.row for example in prepared.train] == [2, 3]
        counts = {name: prepared.counts[name] for name in ("asked", "train", "cut", "dropped_too_long")}
        assert counts == {"asked": 3, "train": 2, "cut": 1, "dropped_too_long": 1}
        assert "1 left out as too long; 1 cut" in prepared.dropped_in_words
        assert [example.first_label for example in prepared.train] == [0, prepared.train[0].labels]
    source = Files(str(path), heldout_share=0, streaming=True)
    stream = prepare_stream(replace(config, source=source, contamination="drop"), tiny_tokenizer(), 1024, 0).stream
    assert stream
    made = list(islice(stream.examples(), 2))
    assert [example.row for example, _ in made] == [2, 3]
    assert made[-1][1].counts == {"asked": 3, "train": 2, "cut": 1, "dropped_too_long": 1}


def test_a_held_out_row_that_is_cut_within_its_prompt_is_left_out_and_counted(tmp_path: Path) -> None:
    train, held = tmp_path / "rows.jsonl", tmp_path / "val.jsonl"
    train.write_text(json.dumps(PAIR))
    held.write_text(f'{{"prompt": "{"p" * 50}", "completion": "x"}}\n{{"prompt": "q", "completion": "y"}}\n')
    config = DataConfig(Files(str(train), heldout=str(held)), None, 0, None, max_length=40, truncation="cut")
    prepared = prepare(config, tiny_tokenizer(), 1024)
    assert (prepared.counts["heldout"], prepared.counts["heldout_dropped_too_long"]) == (1, 1)
    assert [row.row for row in prepared.heldout_rows] == [2]


def test_a_cached_reference_lies_beside_weighted_tokens(tmp_path: Path) -> None:
    """A token of weight 0 has no place in the cache, and the others keep theirs."""
    prepared, recipe = weighted_rows(), Recipe("label", 5, "float32", "32-true")
    plan = CachePlan(tmp_path / "label", recipe, prepared.train, {"detail": "label"}, {}, Collate(256))
    ensure(plan, lambda done: tiny_policy(), lambda done: None, print)
    for batch in batches(prepared, batch_size=3, accumulate=3):
        out, labels = module("sft").token_loss(batch), batch.labels[batch.labels != IGNORE]
        known = Cached(plan).reference(batch).at(labels, torch.zeros(1))
        torch.testing.assert_close(-known.label_logp, out.nll)


def test_a_window_that_is_taught_again_is_read_again() -> None:
    """What divides a step by its weights is the policy's of today, also where the same micro-batches come back."""
    micro_batches = batches(eight_rows(), batch_size=8)
    trained, fresh = module("dft", {"normalize": "weight_sum"}), module("dft", {"normalize": "weight_sum"})
    one_step(trained, micro_batches)
    with torch.no_grad():
        for parameter in trained.policy.parameters():
            parameter.mul_(2.0)
    fresh.policy.load_state_dict(trained.policy.state_dict())
    close(one_step(trained, micro_batches)[0], one_step(fresh, micro_batches)[0], 1e-5)

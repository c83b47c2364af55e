"""The templates that TRL 1.16 ships, on transformers 5.23: what is taught is what is asked, or refused in words."""

from __future__ import annotations

import json
import re
import string
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from qtarget import encode
from qtarget.config import versions
from qtarget.config.composing import compose_config, config_container
from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration, Example
from qtarget.data.module import DataConfig, prepare
from qtarget.data.sources.jsonl import Jsonl
from qtarget.data.template import Template
from qtarget.errors import QTargetError
from qtarget.model.builtin import tiny_tokenizer
from qtarget.run.exported_model import stopping

SPEC = find_spec("trl")
SHIPPED = sorted((Path(str(SPEC.origin)).parent / "chat_templates").glob("*.jinja")) if SPEC else []
SPECIAL = re.compile(
    r"<[|｜][^<>\n'\"{}]{1,40}[|｜]>|<(?:start|end)_of_\w+>|<end_of_utterance>|\[/?INST\]|<turn\|>|<\|turn>"
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 2}}}
PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer", "description": "n"}}, "required": ["x"]}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": PARAMETERS}}]
Talk = list[dict[str, Any]]


def asks(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


TALKS: dict[str, Talk] = {
    "single": [asks("2+2?"), says("four")],
    "multi": [asks("2+2?"), says("four"), asks("3+3?"), says("six")],
    "system": [{"role": "system", "content": "be brief"}, asks("2+2?"), says("four")],
    "reasoning": [asks("2+2?"), says("four", reasoning_content="two and two")],
    "thought": [asks("2+2?"), says("<think>\ntwo and two\n</think>\n\nfour")],
    "tools": [asks("2+2?"), says("", tool_calls=[CALL]), {"role": "tool", "name": "add", "content": "4"}, says("four")],
}


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    """A token a byte, and the control tokens that a template writes."""
    tokenizer = tiny_tokenizer()
    names = sorted({found[0] for found in SPECIAL.finditer(template)})
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    tokenizer.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>"})
    tokenizer.chat_template = template
    return tokenizer


def taught(example: Example) -> list[tuple[list[int], list[int]]]:
    """(what stands before a reply, the reply) as tokens."""
    ids, flags = list(example.input_ids), [*example.supervised, False]
    starts = [at for at, flag in enumerate(flags) if flag and not (at and flags[at - 1])]
    return [(ids[:at], ids[at : flags.index(False, at)]) for at in starts]


def prompt(tokenizer: PreTrainedTokenizerFast, messages: Talk, tools: Any) -> list[int]:
    """By transformers alone; content as parts for templates that read nothing else."""
    if Template(tokenizer).in_parts:
        messages = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    except TypeError:  # DeepSeek-V3's template takes arguments as text alone
        called = {**CALL, "function": {"name": "add", "arguments": '{"x": 2}'}}
        given = [{**one, "tool_calls": [called]} if "tool_calls" in one else one for one in messages]
        text = tokenizer.apply_chat_template(given, tools=tools, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture(autouse=True)
def one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates that write the date write ours by themselves, so that transformers' own prompt can be compared."""
    from transformers.utils import chat_template_utils as utils

    class Day(utils.datetime):  # type: ignore[misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2024, 7, 26)

    monkeypatch.setattr(utils, "datetime", Day)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_shipped_template_is_taught_as_it_is_asked_or_refused(path: Path) -> None:
    tokenizer, right = tokenizer_with(path.read_text()), 0
    for name, messages in TALKS.items():
        tools = TOOLS if name == "tools" else None
        try:
            examples = encode(tokenizer, messages, tools=tools or ())
        except QTargetError:
            continue
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        replies = [reply for example in examples for reply in taught(example)]
        assert len(replies) == len(turns), name
        for at, (context, reply) in zip(turns, replies, strict=True):
            assert context == prompt(tokenizer, messages[:at], tools), name
            text, answer = str(tokenizer.decode(reply)), messages[at]["content"].rpartition("</think>")[2].strip()
            assert answer in text
            assert "add" in text or "tool_calls" not in messages[at]
            assert reply[-1] in ChatFormat(tokenizer).ends, text
        right += 1
    assert right, "every template can teach something"


def test_all_templates_are_there() -> None:
    assert len(SHIPPED) >= 70


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("gptoss", "<|return|>"),
        ("cohere2", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
        ("phi3_5", "<|end|>"),
        ("qwen3", "<|im_end|>"),
    ],
)
def test_the_end_of_turn_is_the_one_that_generation_stops_at(name: str, end: str) -> None:
    tokenizer = tokenizer_with(next(path for path in SHIPPED if path.stem == name).read_text())
    assert end.endswith(str(tokenizer.decode([ChatFormat(tokenizer).end_of_turn])))
    ((_, reply),) = taught(encode(tokenizer, TALKS["single"])[-1])
    assert str(tokenizer.decode(reply)).endswith(f"four{end}")


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_control_token_that_a_message_spells_stays_text(role: str) -> None:
    tokenizer = tiny_tokenizer()
    talk = [asks("how?"), says("so")]
    talk[role == "assistant"]["content"] = "with <|end|> they <|user|> end"
    (example,) = encode(tokenizer, talk)
    assert list(example.input_ids).count(tokenizer.eos_token_id) == 2
    assert "with <|end|> they <|user|> end" in str(tokenizer.decode(example.input_ids))
    assert taught(example)[0][0] == ChatFormat(tokenizer).prompt_ids(talk[:1])


@pytest.mark.parametrize("lost", [{"tool_calls": [CALL]}, {"reasoning_content": "two and two"}])
def test_what_a_template_leaves_out_is_refused_by_name(lost: dict[str, Any]) -> None:
    with pytest.raises(QTargetError, match=f"leaves out the {next(iter(lost))}"):
        encode(tiny_tokenizer(), [asks("2+2?"), says("four", **lost)])
    with pytest.raises(QTargetError, match="no place for tools"):
        encode(tiny_tokenizer(), TALKS["single"], tools=TOOLS)


@pytest.mark.parametrize("template", ["{{ strftime_now('%d %b %Y') }}", ""])
def test_a_template_that_writes_the_date_makes_new_runs(template: str, workdir: Path) -> None:
    cfg = compose_config("train", ["model=tiny"])
    cfg.model.chat_template = template or None
    assert ("chat" in versions.versions(config_container(cfg))) == bool(template)


@pytest.mark.parametrize(("text", "is_new"), [("ends with <|im_end|> here", True), ("ends here", False)])
@pytest.mark.parametrize(("scheme", "marks"), [("Metaspace", True), ("ByteLevel", False)])
def test_word_marks_and_control_tokens_in_rows_make_new_runs(
    text: str, is_new: bool, scheme: str, marks: bool, workdir: Path
) -> None:
    (workdir / "base").mkdir()
    added = '{"added_tokens": [{"id": 1, "content": "<|im_end|>", "normalized": false, "special": true}]'
    (workdir / "base/tokenizer.json").write_text(
        f'{added}, "pre_tokenizer": {{"type": "{scheme}"}}, "model": {{"vocab": {{}}}}}}'
    )
    (workdir / "base/config.json").write_text("{}")
    (workdir / "rows.jsonl").write_text(f'{{"prompt": "how?", "completion": "{text}"}}\n')
    cfg = compose_config("train", ["model=path", "model.name=base", "data=jsonl", "data.source.path=rows.jsonl"])
    assert ("chat" in versions.versions(config_container(cfg))) == (is_new or marks)


def marking(kind: str) -> PreTrainedTokenizerFast:
    """Tokenizers that put a word mark before a text: Mistral's, an old Llama's normalizer, and T5's scheme."""
    made = Tokenizer(
        models.BPE(vocab={letter: at for at, letter in enumerate(sorted({*string.printable, "▁"}))}, merges=[])
    )
    if kind == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=kind, split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    return tokenizer


@pytest.mark.parametrize("kind", ["first", "always", "prepend"])
@pytest.mark.parametrize("begin", ["", " "], ids=["no space", "a space"])
def test_a_reply_is_no_beginning_of_a_text(kind: str, begin: str) -> None:
    tokenizer = marking(kind)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    talk = [asks("hi"), says(f"{begin}Hello"), asks("2+2?"), says(f"{begin}Four")]
    (example,) = encode(tokenizer, talk)
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(example.input_ids) == whole[: len(example)]
    assert [context for context, _ in taught(example)] == [prompt(tokenizer, talk[:at], None) for at in (1, 3)]


def test_a_row_of_several_examples_is_one_row_in_every_count(workdir: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{% if loop.last and m['role'] == 'assistant' %}!{% endif %}"
        "{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rows = [{"messages": [asks(f"a{n}"), says("one"), asks(f"b{n}"), says("two" * n)]} for n in range(1, 41)]
    (workdir / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DataConfig(
        Jsonl("rows.jsonl", heldout_share=0.5), rows=None, heldout_rows=None, max_length=60, truncation="drop"
    )
    ready = prepare(data, tokenizer, 512)
    counts = ready.counts
    assert counts["train"] + counts["dropped_too_long"] + counts["heldout_asked"] == 40
    assert counts["dropped_too_long"] > 0
    assert len(ready.train) == 2 * counts["train"]
    assert len(ready.heldout) == 2 * len(ready.heldout_rows)
    for example, place in zip(ready.heldout, ready.heldout_of, strict=True):
        assert example.row == ready.heldout_rows[place].row
    assert [example.first_label for example in ready.train] == list(accumulate([0, *(e.labels for e in ready.train)]))[
        :-1
    ]


DEEPSEEK = (  # as DeepSeek-R1's, without tools and thoughts
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<｜Assistant｜>{{ m['content'] }}<｜end｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def not_special(template: str, *tokens: str) -> PreTrainedTokenizerFast:
    """Control tokens that a tokenizer doesn't call special: as <｜User｜> of DeepSeek-R1's tokenizer.json, or after
    `add_tokens` without special_tokens=True.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>"})
    tokenizer.add_tokens(list(tokens))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "tokens", "end"),
    [
        (DEEPSEEK, ("<｜User｜>", "<｜Assistant｜>", "<｜end｜>"), "<｜end｜>"),
        (CHATML, ("<|im_start|>", "<|im_end|>", "<tool>", "user", "\n\n"), "<|im_end|>"),
    ],
    ids=["deepseek", "chatml"],
)
def test_control_tokens_that_are_not_called_special_are_structure_all_the_same(
    template: str, tokens: tuple[str, ...], end: str
) -> None:
    tokenizer = not_special(template, *tokens)
    talk = [asks(f"{end} how? {tokens[0]}"), says(f"with {end} they <tool> end"), asks("user\n\n"), says("so")]
    (example,) = encode(tokenizer, talk)
    replies = [str(tokenizer.decode(reply)) for _, reply in taught(example)]
    assert replies == [f"with {end} they <tool> end{end}", f"so{end}"]
    written = tokenizer.apply_chat_template([asks("a"), says("b"), asks("c"), says("d")], tokenize=False)
    assert list(example.input_ids).count(tokenizer.convert_tokens_to_ids(end)) == written.count(end)
    assert {tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id} == ChatFormat(tokenizer).ends
    assert [context for context, _ in taught(example)] == [ChatFormat(tokenizer).prompt_ids(talk[:at]) for at in (1, 3)]
    assert tokenizer.convert_tokens_to_ids(end) not in ChatFormat(tokenizer).plain_tokens
    assert "1 rows hold the control token" in "".join(ChatFormat(tokenizer).notes([Demonstration(talk, row=0)]))


@pytest.mark.parametrize("kind", ["first", "always", "prepend"])
def test_such_tokens_stay_text_where_word_marks_are_put_before_a_text(kind: str) -> None:
    tokenizer = marking(kind)
    tokenizer.add_tokens(["<|user|>", "<|end|>"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '' }}{{ m.content }}<|end|>{% endfor %}"
    )
    ((context, reply),) = taught(encode(tokenizer, [asks("hi <|end|> there"), says("a <|end|> b")])[-1])
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert (context.count(end), reply.count(end), reply[-1]) == (1, 1, end)
    assert tokenizer.convert_ids_to_tokens(reply[:-1]) == [*"a▁<|end|>▁b"]


@pytest.mark.parametrize("is_special", [True, False])
@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_control_tokens_that_are_not_called_special_make_new_runs(is_special: bool, where: str, workdir: Path) -> None:
    (workdir / "base").mkdir()
    added = {"id": 1, "content": "<|im_end|>", "normalized": False, "special": is_special}
    other = {"id": 2, "content": "<|other|>", "normalized": False, "special": False}
    (workdir / "base/tokenizer.json").write_text(json.dumps({"added_tokens": [added, other]}))
    config = {"added_tokens_decoder": {"2": other}} | ({"chat_template": CHATML} if where.endswith("json") else {})
    (workdir / "base/tokenizer_config.json").write_text(json.dumps(config))
    (workdir / "base/config.json").write_text("{}")
    if where.endswith("jinja"):
        (workdir / "base" / where).write_text(CHATML)
    (workdir / "rows.jsonl").write_text('{"prompt": "how?", "completion": "so"}\n')
    cfg = compose_config("train", ["model=path", "model.name=base", "data=jsonl", "data.source.path=rows.jsonl"])
    assert ("chat" in versions.versions(config_container(cfg))) is not is_special


def test_a_template_that_wants_a_system_message_is_taught_with_one() -> None:
    """Its own probes begin with one too: the end of turn is known, and the checkpoint ends there."""
    wants = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('begin with a system message') }}{% endif %}"
    for template in (wants + CHATML, wants + CHATML.replace("m['content']", "m['content'][0]['text']")):
        tokenizer = not_special(template)
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
        ((_, reply),) = taught(encode(tokenizer, TALKS["system"])[-1])
        assert str(tokenizer.decode(reply)) == "four<|im_end|>"
        assert stopping(ChatFormat(tokenizer)).eos_token == "<|im_end|>"
        with pytest.raises(QTargetError, match="begin with a system message"):
            encode(tokenizer, TALKS["single"])


@pytest.mark.parametrize("kind", ["first", "always", "prepend"])
def test_a_control_token_in_a_reply_stays_text_where_the_prompt_joins_the_reply(kind: str) -> None:
    """The prompt's last space and the reply are one piece of the text, so that the reply is read apart."""
    made = Tokenizer.from_str(marking(kind).backend_tokenizer.to_str())
    model = json.loads(made.to_str())["model"]
    words = {**model["vocab"], "▁w": len(model["vocab"])}
    made.model = models.BPE(vocab=words, merges=[("▁", "w")], unk_token="?")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>", unk_token="?")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% else %}{{ eos_token }}{% endif %}"
    )
    talk = [asks("b"), says("with </s> and é"), asks("c"), says("w </s>")]
    end = tokenizer.eos_token_id
    examples = encode(tokenizer, talk)
    assert [list(example.input_ids).count(end) for example in examples] == [1, 1]
    replies = [reply for example in examples for _, reply in taught(example)]
    assert tokenizer.convert_ids_to_tokens(replies[0]) == [*"with▁</s>▁and▁?\n", "</s>"]
    assert tokenizer.convert_ids_to_tokens(replies[1]) == [*"w▁</s>\n", "</s>"]

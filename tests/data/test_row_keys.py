"""What rows of the field's formats hold beside role and content reaches the conversation, or is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration
from qtarget.data.module import DataConfig, Prepared, prepare
from qtarget.data.noise import ParaphraseStyle, SwappedDemonstration, Truncated, WrongAnswer
from qtarget.data.overlap import prompt_text
from qtarget.data.sources.hub import Hub
from qtarget.data.sources.jsonl import Jsonl
from qtarget.errors import QTargetError
from qtarget.model.builtin import tiny_tokenizer

USER, REPLY = {"role": "user", "content": "weather?"}, {"role": "assistant", "content": "sunny"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
READ_CALL = {**CALL, "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TEMPLATE = (  # in the way of Qwen 2.5: tools first, calls as JSON behind the content, thoughts before it
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def written(folder: Path, *rows: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(folder: Path, *given: Any, **fields: Any) -> list[Demonstration]:
    return Jsonl(written(folder, *given), heldout_share=0, **fields).rows("train", None)


def one(folder: Path, row: Any, **fields: Any) -> Demonstration:
    return rows(folder, row, **fields)[0]


def prepared(folder: Path, *given: Any, **fields: Any) -> Prepared:
    source = Jsonl(written(folder, *given), heldout_share=0, **fields)
    return prepare(DataConfig(source, rows=None, heldout_rows=0), tiny_tokenizer(), 1024)


def talk(*messages: Any, **beside: Any) -> dict[str, Any]:
    return {"messages": list(messages), **beside}


def fine_tuning_text(row: Demonstration) -> str:
    """The whole conversation under a template that writes tools, calls and thoughts, and what of it is taught."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    result: Any = ChatFormat(tokenizer).encode(row)
    example = result[-1] if isinstance(result, list) else result
    kept = [token for token, on in zip(example.input_ids, example.supervised, strict=True) if on]
    return str(tokenizer.decode(kept))


# Formats


def test_openai_fine_tuning_rows(tmp_path: Path) -> None:
    """https://platform.openai.com/docs/guides/supervised-fine-tuning: messages with weight 0 or 1, tools beside them,
    tool_calls whose arguments are JSON text and whose content is null, replies of tools; parallel_tool_calls of a row.
    """
    answer = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    row = one(
        tmp_path,
        talk({"role": "developer", "content": "be brief"}, USER, CALLING, answer, {**REPLY, "weight": 0}, USER, REPLY)
        | {"tools": [TOOL], "parallel_tool_calls": False},
    )
    assert [message["role"] for message in row.messages][:4] == ["developer", "user", "assistant", "tool"]
    assert (row.messages[2]["content"], row.messages[2]["tool_calls"]) == ("", [READ_CALL])
    assert (row.messages[3]["tool_call_id"], row.messages[4]["weight"]) == ("call_1", 0.0)
    assert (list(row.tools), list(row.unread)) == ([TOOL], ["parallel_tool_calls"])
    assert fine_tuning_text(row).startswith('<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|end|>')
    assert fine_tuning_text(row).count("sunny") == 1


def test_openai_s_functions_of_2023_are_tools_and_calls(tmp_path: Path) -> None:
    """https://platform.openai.com/docs/api-reference/chat/create: function_call, functions and the role function are
    the deprecated words for tool_calls, tools and the role tool. Fine-tuning files of that year hold them.
    """
    function = TOOL["function"]
    call = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    given = {"role": "function", "name": "weather", "content": "rain"}
    row = one(tmp_path, talk(USER, call, given, REPLY, functions=[function]))
    same = one(
        tmp_path,
        talk(
            USER,
            {**CALLING, "tool_calls": [{"function": CALL["function"]}]},
            {**given, "role": "tool"},
            REPLY,
            tools=[TOOL],
        ),
    )
    assert (row.messages, row.tools, row.unread) == (same.messages, same.tools, same.unread)
    assert row.messages[1]["tool_calls"] == [{"type": "function", "function": READ_CALL["function"]}]
    assert fine_tuning_text(row).startswith('<call>{"name": "weather", "arguments": {"city": "Oslo"}}</call><|end|>')
    with pytest.raises(QTargetError, match="functions and tools: keep one"):
        one(tmp_path, talk(USER, REPLY, functions=[function], tools=[TOOL]))
    assert list(one(tmp_path, talk(USER, REPLY, functions=[])).tools) == []
    assert list(one(tmp_path, {"prompt": "a", "completion": "b", "functions": [function]}).unread) == ["functions"]


def test_mistral_fine_tuning_rows(tmp_path: Path) -> None:
    """https://docs.mistral.ai/capabilities/finetuning: as OpenAI's, with ids of nine characters; calls may be flat."""
    flat = {"role": "assistant", "tool_calls": [{"id": "abcdefghi", "name": "weather", "arguments": {"city": "Oslo"}}]}
    row = one(tmp_path, talk(USER, flat))
    assert row.messages[-1]["tool_calls"] == [{**READ_CALL, "id": "abcdefghi"}]


def test_reasoning_rows_of_deepseek_and_qwen(tmp_path: Path) -> None:
    """Thoughts are reasoning_content at DeepSeek (api-docs.deepseek.com) and in Qwen/Qwen3-8B's template, and thinking
    in gpt-oss's."""
    row = one(tmp_path, talk(USER, {**REPLY, "reasoning_content": "look out"}))
    assert fine_tuning_text(row) == "<think>look out</think>sunny<|end|>"
    assert one(tmp_path, talk(USER, {**REPLY, "thinking": "look out"})).messages[-1]["thinking"] == "look out"
    with pytest.raises(QTargetError, match="keep one of them"):
        one(tmp_path, talk(USER, {**REPLY, "thinking": "a", "reasoning_content": "b"}))


def test_alpaca_rows_with_system_and_history(tmp_path: Path) -> None:
    """LLaMA-Factory's data/README: system and history beside instruction, input and output; history is taught too."""
    row = one(
        tmp_path,
        {"instruction": "and", "input": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
        system="other",
    )
    assert [message["content"] for message in row.messages] == ["s", "a", "b", "and\n\nc", "d"]
    plain = one(tmp_path, {"instruction": "a", "output": "d", "system": "", "history": None}, system="other")
    assert [message["content"] for message in plain.messages] == ["other", "a", "d"]


def test_sharegpt_like_rows(tmp_path: Path) -> None:
    """Axolotl's and LLaMA-Factory's forms: system and tools (as JSON text) beside the messages, train on each."""
    told = talk({**USER, "train": False}, {**REPLY, "train": False}, USER, {**REPLY, "train": True})
    row = one(tmp_path, told | {"system": "s", "tools": json.dumps([TOOL]), "id": 7})
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [message.get("weight") for message in row.messages] == [None, None, 0.0, None, 1.0]
    assert (list(row.tools), list(row.unread)) == ([TOOL], ["id"])


def test_sharegpt_rows_are_the_same_in_openais_words(tmp_path: Path) -> None:
    """LLaMA-Factory's data/README: from and value; function_call holds a call, observation what came of it."""
    call = json.dumps({"name": "lamp", "arguments": {"on": True}})
    told = (("human", "light"), ("function_call", call), ("observation", "ok"), ("gpt", "done"))
    row = one(tmp_path, {"conversations": [{"from": who, "value": what} for who, what in told], "system": "s"})
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert row.messages[2]["tool_calls"][0]["function"] == {"name": "lamp", "arguments": {"on": True}}
    assert (row.messages[3]["content"], row.completion) == ("ok", "done")
    weighed = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0}]
    assert one(tmp_path, {"messages": weighed}).messages[1]["weight"] == 0.0
    assert one(tmp_path, {"conversations": [USER, REPLY]}).completion == REPLY["content"]
    assert list(one(tmp_path, talk(USER, REPLY, conversations=[USER])).unread) == ["conversations"]


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"from": "narrator", "value": "a"}, r"conversations\[0\] is from 'narrator'; known: human, user, gpt"),
        ({"from": "human", "value": "a", "content": "b"}, r"conversations\[0\] has value and content: keep one"),
        ({"from": "function_call", "value": "lamp on"}, r"conversations\[0\].value is text that can't be read as JSON"),
        ({"from": "human", "value": "a", "mood": "good"}, r"conversations\[0\].mood is not read"),
        ({"from": "human", "value": ""}, r"conversations\[0\].content is empty"),
    ],
)
def test_what_is_wrong_with_a_turn_of_sharegpt_is_said(turn: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(QTargetError, match=f"line 1: {expected}"):
        one(tmp_path, {"conversations": [turn, {"from": "gpt", "value": "a"}]})


def test_history_beside_a_prompt_is_read_and_not_called_unread(tmp_path: Path) -> None:
    row = one(tmp_path, {"prompt": "and", "completion": "d", "history": [["a", "b"]], "input": "x"})
    assert [message["content"] for message in row.messages] == ["a", "b", "and", "d"]
    assert list(row.unread) == ["input"]


@pytest.mark.parametrize(
    ("key", "words"), [("chosen", "Of preference rows, name the chosen one"), ("response", "other")]
)
def test_rows_with_keys_of_other_names_are_told_how_they_are_read(key: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(
        QTargetError,
        match=rf"{words}.*data=files data.source.path=/\S+ data.source.prompt=prompt data.source.completion={key}",
    ):
        one(tmp_path, {"prompt": "q", key: "a"})


def test_content_in_parts_of_text_is_their_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "wea"}, {"type": "text", "text": "ther?", "image_url": None}]
    assert one(tmp_path, talk({**USER, "content": parts}, REPLY)).messages[0]["content"] == "weather?"
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(QTargetError, match=r"messages\[0\].content\[0\] is of the type 'image_url'"):
        one(tmp_path, talk({**USER, "content": image}, REPLY))


# Keys that nobody reads


def test_an_unread_key_of_a_message_is_refused_and_one_of_a_row_is_counted(tmp_path: Path) -> None:
    odd = talk(USER, {**REPLY, "mood": "good"}, id=1, note=None)
    with pytest.raises(QTargetError, match=r"line 1: messages\[1\].mood is not read"):
        one(tmp_path, odd)
    assert list(one(tmp_path, odd, unknown="ignore").unread) == ["id", "messages[].mood"]
    with pytest.raises(QTargetError, match="line 1: the key 'id' is not read"):
        one(tmp_path, talk(USER, REPLY, id=1), unknown="error")
    result = prepared(tmp_path, talk(USER, REPLY, id=1, tag="x"), talk(USER, REPLY, id=2))
    assert (result.counts["unread_id"], result.counts["unread_tag"]) == (2, 1)
    assert "keys not read: id (2 rows), tag (1 rows)" in result.dropped_in_words


def test_a_weight_where_nothing_is_taught_is_named(tmp_path: Path) -> None:
    assert list(one(tmp_path, talk({**USER, "weight": 0}, REPLY)).unread) == []
    assert list(one(tmp_path, talk({**USER, "weight": 1}, REPLY)).unread) == ["messages[].weight of a user message"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"weight": -1}, "weight must be a number of at least 0"),
        ({"weight": "1"}, "weight must be a number of at least 0, got '1'"),
        ({"train": 0.5}, "train must be true or false"),
        ({"train": 1, "weight": 1}, "weight and train"),
        ({"function_call": "auto"}, r"messages\[1\].function_call must be an object with name and arguments, got text"),
        ({"function_call": {"name": "f"}, "tool_calls": [CALL]}, "function_call and tool_calls: keep one of them"),
        ({"tool_calls": [{"type": "custom", "custom": {}}]}, "of the type 'custom'"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}]}, "arguments is text that can't be read"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, "arguments must be an object"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": '{"a": NaN}'}}]}, "arguments.a holds nan, which JSON"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"a": [1e999]}}}]}, "arguments.a holds inf"),
        ({"tool_call_id": "x"}, r"messages\[1\].tool_call_id is not read"),
    ],
)
def test_what_is_wrong_with_a_message_is_said(message: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(QTargetError, match=f"line 1: .*{expected}"):
        one(tmp_path, talk(USER, {**REPLY, **message}))


def test_a_weight_that_stands_twice_is_neither(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "weight": 0, "weight": 1}\n')
    with pytest.raises(QTargetError, match="weight must be a number of at least 0, got 'two different values"):
        Jsonl(str(path), heldout_share=0).rows("train", None)


def test_rows_that_teach_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    result = prepared(tmp_path, talk(USER, {**REPLY, "weight": 0}), talk(USER, REPLY), talk(USER, REPLY, weight=0))
    assert (result.counts["asked"], result.counts["train"], result.counts["dropped_untaught"]) == (3, 1, 2)
    assert "2 left out as nothing in them has a weight above 0" in result.dropped_in_words


def test_row_and_span_weights_of_jsonl(tmp_path: Path) -> None:
    row = one(tmp_path, {"prompt": "a", "completion": "sunny", "weight": 2, "span_weights": [[3, 5, 0.5], [0, 3, 0]]})
    assert (row.weight, list(row.weights)) == (2.0, [(0, 3, 0.0), (3, 5, 0.5)])
    for spans, expected in (
        ([[0, 3, 1], [2, 4, 1]], "overlap at character 2"),
        ([[0, 9, 1]], "5 characters"),
        ([[0, 2, -1]], "at least 0"),
    ):
        with pytest.raises(QTargetError, match=expected):
            one(tmp_path, {"prompt": "a", "completion": "sunny", "span_weights": spans})


# The same in every door, and behind it


def test_a_column_of_messages_keeps_tools_calls_and_weights_from_parquet(tmp_path: Path) -> None:
    """datasets gives every struct all keys of its column, null where a row has none."""
    import datasets

    given = [
        talk(USER, {**CALLING, "weight": 0.5}, tools=[TOOL], weight=2.0),
        talk(USER, REPLY, tools=None, weight=None),
    ]
    datasets.Dataset.from_list(given).to_parquet(str(tmp_path / "rows.parquet"))
    first, second = Hub(str(tmp_path / "rows.parquet"), messages="messages").rows("train", None)
    assert (first.messages[-1]["tool_calls"], first.messages[-1]["weight"], first.weight) == ([READ_CALL], 0.5, 2.0)
    assert (first.tools[0]["function"]["name"], list(second.tools), second.weight) == ("weather", [], 1.0)
    assert list(second.messages) == [USER, REPLY]
    with pytest.raises(QTargetError, match="no column 'functions'"):
        Hub(str(tmp_path / "rows.parquet"), messages="messages", tools="functions").rows("train", None)


def test_a_template_that_drops_calls_tools_or_thoughts_is_refused(tmp_path: Path) -> None:
    for row in (talk(USER, CALLING), talk(USER, REPLY, tools=[TOOL]), talk(USER, {**REPLY, "reasoning_content": "a"})):
        with pytest.raises(QTargetError, match=r"row 1: the chat template (leaves out|has no place for)"):
            prepared(tmp_path, row)


def test_noise_leaves_calls_and_untaught_replies_alone(tmp_path: Path) -> None:
    """What it makes wrong must be markable, and taught: only replies of text are drawn."""
    given = [talk(USER, {**REPLY, "content": f"{number} degrees"}) for number in range(2)]
    found = rows(tmp_path, *given, talk(USER, CALLING), talk(USER, {**REPLY, "weight": 0}))
    for noise in (WrongAnswer(0.5), SwappedDemonstration(0.5), ParaphraseStyle(0.5), Truncated(0.5)):
        assert noise(found)[2:] == found[2:]
        with pytest.raises(QTargetError, match="only 2 can take it"):
            type(noise)(1.0)(found)


def test_prompts_that_differ_in_a_call_are_two_prompts(tmp_path: Path) -> None:
    other = {**CALL, "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    answer = {"role": "tool", "content": "sunny"}
    first, second = (
        one(tmp_path, talk(USER, {**CALLING, "tool_calls": [call]}, answer, REPLY)) for call in (CALL, other)
    )
    assert prompt_text(first.prompt) != prompt_text(second.prompt)

"""Replies under templates that open or drop thoughts, that read calls in one form, or that write no prompt's end."""

from __future__ import annotations

from typing import Any

import pytest
from test_templates import CHATML, asks, says, taught, tokenizer_with

from qtarget import encode
from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration
from qtarget.data.thought import MARKS
from qtarget.errors import QTargetError
from qtarget.model.chat_template import give

SINGLE_MARKS = MARKS[:-2]
"""Those that are a text of their own, whatever follows; Gemma 4's and gpt-oss's stand among control tokens."""


def templated(content: str, opening: str = "", before: str = "") -> str:
    """ChatML that writes `content` for a reply, and opens its prompt's last turn with a text."""
    written = CHATML.replace("m['content']", f"({content} if m['role'] == 'assistant' else m['content'])")
    return before + written.replace("assistant\n{% endif %}", f"assistant\n{opening}{{% endif %}}")


def replies(template: str, talk: list[dict[str, Any]], **more: Any) -> list[str]:
    tokenizer = tokenizer_with(template)
    examples = encode(tokenizer, talk, **more)
    for context, _ in (pair for example in examples for pair in taught(example)):
        assert context in [ChatFormat(tokenizer).prompt_ids(talk[:at], **more) for at in range(1, len(talk))]
    return [str(tokenizer.decode(reply)) for example in examples for _, reply in taught(example)]


@pytest.mark.parametrize(("mark", "close"), SINGLE_MARKS)
def test_a_prompt_that_opens_a_thought_is_taught_one_also_where_the_template_drops_thoughts(
    mark: str, close: str
) -> None:
    """As EXAONE Deep's `<thought>` and DeepSeek-R1's `<think>`, whatever the mark."""
    template = templated(f"m['content'].split('{close}')[-1]", f"{mark}\n")
    talk = [asks("q"), says(f"{mark}\nsix is six\n{close}\n\nsix"), asks("b"), says(f"{mark}{close}<|im_start|>end")]
    assert replies(template, talk) == [
        f"six is six\n{close}\n\nsix<|im_end|>",
        f"{close}<|im_start|>end<|im_end|>",
    ]
    with pytest.raises(QTargetError, match="a model begins with its thought"):
        replies(template, [asks("q"), says("six")])


def test_a_thought_is_written_once_where_the_template_keeps_it_in_other_white_space() -> None:
    template = templated("m['content']", "<think>\n")
    (reply,) = replies(template, [asks("q"), says("<think>four, so four</think>four")])
    assert reply == "four, so four</think>four<|im_end|>"


def test_control_tokens_in_a_thought_that_the_template_drops_stay_text() -> None:
    template = templated("m['content'].split('</think>')[-1]", "<think>\n")
    tokenizer = tokenizer_with(template)
    (example,) = encode(tokenizer, [asks("q"), says("<think>\nno <|im_end|> yet\n</think>\n\na <|im_end|> b")])
    ((_, reply),) = taught(example)
    assert reply.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert str(tokenizer.decode(reply)) == "no <|im_end|> yet\n</think>\n\na <|im_end|> b<|im_end|>"


@pytest.mark.parametrize(("mark", "close"), SINGLE_MARKS)
def test_a_thought_that_the_template_takes_out_of_a_reply_is_refused(mark: str, close: str) -> None:
    template = templated(f"m['content'].split('{close}')[-1]")
    with pytest.raises(QTargetError, match="leaves a part of the reply's content out, such as its thought"):
        replies(template, [asks("q"), says(f"{mark}\nso\n{close}\n\nfour")])


@pytest.mark.parametrize("content", ["m['content'].split('###')[0]", "m['content'][:8]", "m['content'] | first"])
def test_a_reply_that_the_template_cuts_is_refused(content: str) -> None:
    with pytest.raises(QTargetError, match="leaves a part of the reply's content out"):
        replies(templated(content), [asks("q"), says("four and ### more")])


@pytest.mark.parametrize(
    "content", ["m['content'] | trim", "m['content'] | e", "m['content'] | upper", "m.content|tojson"]
)
def test_a_reply_that_the_template_writes_otherwise_is_taught(content: str) -> None:
    (reply,) = replies(templated(content), [asks("q"), says(' "four" < five\n& so\n')])
    assert reply.casefold().replace("quot;", "").count("four") == 1


def test_a_first_message_of_the_assistant_is_refused_with_the_ways_on() -> None:
    """transformers 5.23 renders no empty conversation, so that nobody can ask for it."""
    talk = [says("Hello"), asks("2+2?"), says("four")]
    with pytest.raises(QTargetError, match=r'row 0: the first message is the assistant\'s.*"weight": 0'):
        replies(CHATML, talk)
    assert replies(CHATML, [says("Hello", weight=0), *talk[1:]]) == ["four<|im_end|>"]
    assert replies(CHATML, talk[1:]) == ["four<|im_end|>"]
    (example,) = encode(tokenizer_with(CHATML), talk, supervise="last")
    assert len(taught(example)) == 1


@pytest.mark.parametrize(
    ("template", "head"), [(CHATML, "<|im_start|>assistant"), ("{{ m.role }}: {{ m.content }}", "")]
)
def test_heads_that_a_template_without_generation_prompt_has_taught_are_said(template: str, head: str) -> None:
    bare = template.partition("{% if add")[0] if head else f"{{% for m in messages %}}{template}\n{{% endfor %}}"
    row = Demonstration([asks("q"), says("four")], row=0)
    (note,) = ChatFormat(tokenizer_with(bare)).notes([row])
    assert f"no generation prompt: replies are taught with their head '{head or 'assistant:'}'" in note
    assert not ChatFormat(tokenizer_with(CHATML)).notes([row])
    mistral = "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content }}"
    assert not ChatFormat(tokenizer_with(f"{mistral}{{% endfor %}}")).notes([row])


# Calls

SPACED = '{"on":   true, "s": "é"}'
FORMS = {
    "text or objects (Qwen3)": "{{ c.arguments if c.arguments is string else c.arguments | tojson }}",
    "text (DeepSeek-V3)": "{{ '' + c.arguments }}",
    "text, objects as Python writes them": "{{ c.arguments }}",
    "text, objects in a form of its own (Gemma 4)": "{% if c.arguments is string %}{{ c.arguments }}"
    "{% else %}{% for k, v in c.arguments.items() %}{{ k }}={{ v | tojson }};{% endfor %}{% endif %}",
    "objects (Llama 3.1)": "{{ c.arguments | tojson }}",
    "objects, key by key": "{% for k, v in c.arguments.items() %}{{ k }}={{ v | tojson }};{% endfor %}",
}
WRITTEN = {
    "text or objects (Qwen3)": (SPACED, '{"on": true, "s": "é"}'),
    "text (DeepSeek-V3)": (SPACED, '{"on": true, "s": "é"}'),
    "text, objects as Python writes them": (SPACED, '{"on": true, "s": "é"}'),
    "text, objects in a form of its own (Gemma 4)": ('on=true;s="é";',) * 2,
    "objects (Llama 3.1)": ('{"on": true, "s": "é"}',) * 2,
    "objects, key by key": ('on=true;s="é";',) * 2,
}


def calling(written: str) -> str:
    calls = "{% for call in m.tool_calls or [] %}{% set c = call.function %}<call>" + written + "</call>{% endfor %}"
    return CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}" + calls)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arguments", [SPACED, {"on": True, "s": "é"}], ids=["text", "object"])
def test_arguments_of_a_call_are_given_in_the_form_that_the_template_reads(form: str, arguments: Any) -> None:
    """As they stand in the row where it reads both; {'on': True}, as Python writes it, is no call."""
    call = {"id": "c1", "type": "function", "function": {"name": "lamp", "arguments": arguments}}
    talk = [asks("light"), says("ok", tool_calls=[call]), {"role": "tool", "content": "on"}, says("done")]
    expected = WRITTEN[form][not isinstance(arguments, str)]
    assert replies(calling(FORMS[form]), talk) == [f"ok<call>{expected}</call><|im_end|>", "done<|im_end|>"]


def test_a_template_that_leaves_calls_out_is_answered_by_one_that_writes_them() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "lamp", "arguments": {"on": True}}}
    talk = [asks("light"), says("ok", tool_calls=[call]), {"role": "tool", "content": "on"}, says("done")]
    with pytest.raises(QTargetError, match=r"leaves out the tool_calls .*\(model\.chat_template=chatml does\)"):
        replies(CHATML, talk)
    tokenizer = tokenizer_with(CHATML)
    give(tokenizer, "chatml")
    (example,) = encode(tokenizer, talk)
    assert '"name": "lamp"' in tokenizer.decode(example.input_ids)


def test_the_keys_of_a_call_keep_their_order() -> None:
    """Templates such as Granite 3's write calls as JSON, whole."""
    template = CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}{{ m.tool_calls | tojson if m.tool_calls }}")
    call = {"id": "c1", "function": {"arguments": {"on": True}, "name": "lamp"}, "type": "function"}
    talk = [asks("light"), says("ok", tool_calls=[call])]
    plain = tokenizer_with(template).apply_chat_template(talk, tokenize=False)
    (reply,) = replies(template, talk)
    assert plain.endswith(f"{reply}\n")

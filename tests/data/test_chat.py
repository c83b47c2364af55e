"""Which tokens are supervised: golden masks, written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import processors

from qtarget.data.batch import Collate
from qtarget.data.chat import ChatFormat, encode
from qtarget.data.example import Demonstration, Example
from qtarget.errors import QTargetError
from qtarget.math.loss import IGNORE
from qtarget.model.builtin import tiny_tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PLAIN = (  # closes its turns with a word, not with the end-of-turn token, and strips what it is given
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def chat(template: str | None = None) -> ChatFormat:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    return ChatFormat(tokenizer)


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


def single(chat: ChatFormat, demonstration: Demonstration) -> Example:
    """A row that is one example."""
    (example,) = chat.encode(demonstration)
    return example


def supervised_text(chat: ChatFormat, demonstration: Demonstration) -> list[str]:
    """The supervised pieces of all examples, as text."""
    return [text for example in chat.encode(demonstration) for text in supervised_pieces(chat, example)]


def supervised_pieces(chat: ChatFormat, example: Example) -> list[str]:
    pieces: list[list[int]] = []
    before = False
    for token, flag in zip(example.input_ids, example.supervised, strict=True):
        if flag:
            pieces = pieces if before else [*pieces, []]
            pieces[-1].append(token)
        before = flag
    return [str(chat.tokenizer.decode(piece)) for piece in pieces]


@pytest.mark.parametrize(
    ("template", "expected"),
    [(None, "42<|end|>"), (CHATML, "42<|end|>"), (PLAIN, "42\n<|end|>")],
    ids=["tiny", "chatml", "plain"],
)
def test_the_answer_and_its_end_of_turn_are_supervised(template: str | None, expected: str) -> None:
    row = Demonstration(turns(("system", "be brief"), ("user", "12 + 30 = 42?"), ("assistant", "42")), row=0)
    assert supervised_text(chat(template), row) == [expected]


@pytest.mark.parametrize("template", [None, CHATML])
def test_every_assistant_turn_is_supervised(template: str | None) -> None:
    row = Demonstration(turns(("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")), row=0)
    assert supervised_text(chat(template), row) == ["one<|end|>", "two<|end|>"]


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_spaces_at_the_edges_of_a_reply_are_supervised_and_no_more(trim_offsets: bool) -> None:
    """transformers 5.23.0 takes in the user's turn, or nothing, where the places of tokens leave spaces out."""
    formatted = chat(CHATML)
    formatted.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    places = formatted.tokenizer(" a ", return_offsets_mapping=True)["offset_mapping"]
    assert (places[-1][0] == places[-1][1]) == trim_offsets
    row = Demonstration(turns(("user", "a"), ("assistant", " one "), ("user", "b"), ("assistant", "two")), row=0)
    assert supervised_text(formatted, row) == [" one <|end|>", "two<|end|>"]


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_conversation_is_tokenised_as_the_template_writes_it(template: str | None) -> None:
    """Whatever the template puts between two turns stands there in training too."""
    formatted = chat(template)
    row = Demonstration(turns(("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")), row=0)
    written = str(formatted.tokenizer.decode(single(formatted, row).input_ids))
    told = formatted.render(row.messages, reply=False)
    assert told.startswith(written)
    assert told[len(written) :] in ("", "\n")


def test_an_end_of_turn_that_the_template_does_not_write_stands_behind_what_is_taught_alone() -> None:
    """The eos is put behind each reply; in the next question's context the template writes none, so none is read."""
    formatted = chat(PLAIN)
    row = Demonstration(turns(("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")), row=0)
    one, two = formatted.encode(row)
    assert formatted.tokenizer.decode(one.input_ids) == "user: a\nassistant: one\n<|end|>"
    assert formatted.tokenizer.decode(two.input_ids) == "user: a\nassistant: one\nuser: b\nassistant: two\n<|end|>"
    assert [supervised_pieces(formatted, example) for example in (one, two)] == [["one\n<|end|>"], ["two\n<|end|>"]]


def test_the_end_of_turn_is_the_templates_own() -> None:
    """Gemma and others close a turn with another token than eos."""
    formatted = chat(CHATML.replace("<|end|>", "<|system|>"))
    row = Demonstration(turns(("user", "a"), ("assistant", "b")), row=0)
    assert formatted.tokenizer.decode([formatted.end_of_turn]) == "<|system|>"
    assert supervised_text(formatted, row) == ["b<|system|>"]


def test_the_prompt_of_a_demonstration_is_what_generation_sees() -> None:
    row = Demonstration(turns(("user", "12 + 30"), ("assistant", "42")), row=0)
    example = single(chat(), row)
    prompt = chat().prompt_ids(row.prompt)
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert not any(example.supervised[: len(prompt)])


@pytest.mark.parametrize("template", [None, CHATML, PLAIN])
def test_wrong_characters_become_wrong_tokens(template: str | None) -> None:
    row = Demonstration(turns(("user", "12 + 30"), ("assistant", "so 47")), row=0, wrong=((4, 5),))
    formatted = chat(template)
    example = single(formatted, row)
    wrong = [token for token, flag in zip(example.input_ids, example.wrong, strict=True) if flag]
    assert formatted.tokenizer.decode(wrong) == "7"


def test_labels_are_shifted_once_and_padding_is_ignored() -> None:
    """Three rows of unequal length; position t holds what follows it."""
    formatted = chat()
    rows = [
        Demonstration(turns(("user", q), ("assistant", a)), row=0) for q, a in (("a", "xy"), ("bcd", "z"), ("e", "f"))
    ]
    examples = [single(formatted, row) for row in rows]
    batch = Collate(pad_id=0)(examples)
    assert batch.input_ids.shape == batch.labels.shape == (3, max(map(len, examples)))
    for index, (row, expected) in enumerate(zip(rows, ("xy<|end|>", "z<|end|>", "f<|end|>"), strict=True)):
        kept = batch.labels[index][batch.labels[index] != IGNORE]
        assert formatted.tokenizer.decode(kept) == expected
        first = int((batch.labels[index] != IGNORE).nonzero()[0])
        prompt = formatted.prompt_ids(row.prompt)
        assert first == len(prompt) - 1
        assert batch.input_ids[index, : first + 1].tolist() == prompt
    assert batch.supervised == 3 + 2 + 2
    assert batch.real_tokens == sum(map(len, examples))


def test_the_wrong_column_stands_beside_the_labels() -> None:
    row = Demonstration(turns(("user", "12 + 30"), ("assistant", "47")), row=0, wrong=((1, 2),))
    batch = Collate(pad_id=0)([single(chat(), row)])
    assert chat().tokenizer.decode(batch.labels[batch.columns["wrong"]]) == "7"
    assert torch.all(batch.labels[batch.columns["wrong"]] != IGNORE)


@pytest.mark.parametrize("messages", [[("user", "hello")], [("user", "hello"), ("assistant", "")]])
def test_a_row_without_supervision_is_named(messages: Any) -> None:
    with pytest.raises(QTargetError, match="row 17: no token to supervise"):
        chat().encode(Demonstration(turns(*messages), row=17))


def test_a_template_that_refuses_a_conversation_names_the_row() -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    with pytest.raises(QTargetError, match=r"row 3: the chat template refuses .*system, user\): no system role"):
        chat(refusing).encode(Demonstration(turns(("system", "s"), ("user", "a"), ("assistant", "b")), row=3))
    with pytest.raises(QTargetError, match=r"row 4: the first message is the assistant's"):
        chat("{{ messages[0]['role'] }}" + CHATML).encode(Demonstration(turns(("assistant", "b")), row=4))


def test_a_template_that_rewrites_earlier_text_is_refused() -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(QTargetError, match="rewrites earlier text"):
        chat(template).encode(Demonstration(turns(("user", "a"), ("assistant", "b")), row=0))


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(QTargetError, match="no chat template"):
        ChatFormat(tokenizer)


# Templates of well-known models, as their tokenizers carry them where tools are left aside

QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n' }}{%- endif %}{%- for message in messages %}"
    "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or "
    "(message.role == 'assistant') %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles!') }}"
    "{% endif %}{% endfor %}"
)
QWEN_BEGINS = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
FAMILIES = {
    "qwen": (
        QWEN,
        ("", "<|im_end|>", "<|im_start|>"),
        QWEN_BEGINS + "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n¦Hello!<|im_end|>¦"
        "\n<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n¦Four.<|im_end|>",
    ),
    "llama3": (
        LLAMA3,
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n¦Hello!<|eot_id|>¦<|start_header_id|>user<|end_header_id|>\n\n"
        "2 + 2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n¦Four.<|eot_id|>",
    ),
    "gemma": (
        GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos><start_of_turn>user\nHi there<end_of_turn>\n<start_of_turn>model\n¦Hello!<end_of_turn>¦"
        "\n<start_of_turn>user\n2 + 2?<end_of_turn>\n<start_of_turn>model\n¦Four.<end_of_turn>",
    ),
    "mistral": (  # the space before a reply is the reply's own: a prompt ends at [/INST]
        MISTRAL,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "<s>[INST] Hi there [/INST]¦ Hello!</s>¦[INST] 2 + 2? [/INST]¦ Four.</s>",
    ),
}
"""Template, (begin of text, end of text, other special tokens), a conversation with its labels between bars."""
TALK = (("user", "Hi there"), ("assistant", "Hello!"), ("user", "2 + 2?"), ("assistant", "Four."))


def family(name: str, supervise: str = "all") -> ChatFormat:
    """A byte-level tokenizer with the template and the special tokens of a family."""
    template, (begin, end, *others), _ = FAMILIES[name]
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": end, **({"bos_token": begin} if begin else {})})
    tokenizer.add_tokens(others, special_tokens=True)
    tokenizer.chat_template = template
    return ChatFormat(tokenizer, supervise)


def golden(name: str) -> tuple[list[int], list[bool]]:
    """Ids and mask of the expected text; a token is a byte or a special one."""
    tokenizer, told = family(name).tokenizer, FAMILIES[name][2]
    pieces = [list(tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in told.split("¦")]
    mask = [place % 2 == 1 for place, piece in enumerate(pieces) for _ in piece]
    return [token for piece in pieces for token in piece], mask


@pytest.mark.parametrize("name", FAMILIES)
def test_golden_ids_and_masks_of_well_known_templates(name: str) -> None:
    example = single(family(name), Demonstration(turns(*TALK), row=0))
    assert (list(example.input_ids), list(example.supervised)) == golden(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_turn_alone_can_be_supervised(name: str) -> None:
    """The same tokens; the first reply is context, as the model reads it when it is asked the second question."""
    example, last = (single(family(name, how), Demonstration(turns(*TALK), row=0)) for how in ("all", "last"))
    assert last.input_ids == example.input_ids
    assert supervised_text(family(name, "last"), Demonstration(turns(*TALK), row=0)) == [
        supervised_text(family(name), Demonstration(turns(*TALK), row=0))[-1]
    ]
    prompt = family(name).prompt_ids(turns(*TALK[:-1]))
    assert list(last.input_ids[: len(prompt)]) == prompt
    assert not any(last.supervised[: len(prompt)])


def test_a_template_that_drops_earlier_thoughts_is_taught_turn_by_turn() -> None:
    """Reasoning models' templates cut <think> out of earlier turns: only the last reply stands where it was written."""
    cutting = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] if loop.last or m['role'] == 'user' else "
        "m['content'].split('</think>')[-1] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    talk = turns(
        ("user", "a"), ("assistant", "<think>x</think>one"), ("user", "b"), ("assistant", "<think>y</think>two")
    )
    tokenizer = chat(cutting).tokenizer
    one, two = ChatFormat(tokenizer).encode(Demonstration(talk, row=0))
    assert supervised_pieces(ChatFormat(tokenizer), one) == ["<think>x</think>one<|end|>"]
    assert supervised_pieces(ChatFormat(tokenizer), two) == ["<think>y</think>two<|end|>"]
    last = ChatFormat(tokenizer, "last")
    assert supervised_text(last, Demonstration(talk, row=0)) == ["<think>y</think>two<|end|>"]
    assert "x</think>" not in str(tokenizer.decode(single(last, Demonstration(talk, row=0)).input_ids))


def test_a_system_message_that_a_template_refuses_names_the_row() -> None:
    talk = turns(("system", "be brief"), *TALK)
    for name, said in (("gemma", "System role not supported"), ("mistral", "Only user and assistant roles!")):
        with pytest.raises(QTargetError, match=f"row 7: .*{said}"):
            family(name).encode(Demonstration(talk, row=7))
    for name in ("qwen", "llama3"):
        assert len(supervised_text(family(name), Demonstration(talk, row=7))) == 2


@pytest.mark.parametrize("role", ["system", "developer", "tool"])
def test_a_template_that_calls_all_but_the_user_the_assistant_is_refused_other_roles(role: str) -> None:
    """As some that are written by hand do; the content reaches the text, so nothing seems lost."""
    either = "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<bot>' }}{{ m.content }}\n{% endfor %}"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = either + "{% if add_generation_prompt %}<bot>{% endif %}"
    talk = [{"role": role, "content": "be brief"}, {"role": "user", "content": "2+2?"}]
    with pytest.raises(QTargetError, match=f"writes a message of the role {role} as the assistant's own"):
        encode(tokenizer, [*talk, {"role": "assistant", "content": "4"}])
    assert encode(tokenizer, [talk[1], {"role": "assistant", "content": "4"}])

"""model.chat_template: shipped templates, files and Jinja; what they write, where replies end, and a run's identity."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config, to_yaml
from qtarget.config.identity import config_hash
from qtarget.config.run_config import RunConfig
from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration
from qtarget.errors import QTargetError
from qtarget.model import provide
from qtarget.model.builtin import tiny_config, tiny_tokenizer
from qtarget.model.chat_template import SHIPPED, give, jinja
from qtarget.run.exported_model import stopping
from qtarget.run.plan import make_plan
from qtarget.run.row_checks import chat_tokenizer
from qtarget.run.stored_config import trained_config

TINY = provide.ModelSource("tiny")
PARAMETERS = {"type": "object", "properties": {"a": {"type": "number"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds <b> & more", "parameters": PARAMETERS}}]
CALLS = [
    {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "on": True, "é": "<ü>"}}},
    {"type": "function", "function": {"name": "add", "arguments": {}}},
]
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "", "tool_calls": CALLS},
    {"role": "tool", "content": "2"},
    {"role": "tool", "content": "0"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "I ask.", "tool_calls": CALLS[:1]},
]
FILE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
ASKING = "{% if add_generation_prompt %}[assistant] {% endif %}"


def with_marks() -> PreTrainedTokenizerFast:
    """As of Qwen2.5's pretrained models: the tokens of ChatML are there, and the eos is the end of text."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"], special_tokens=True)
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def base_model(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    tokenizer = tokenizer or tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    tiny_config(len(tokenizer)).save_pretrained(folder)
    return folder


# What is written


@pytest.mark.skipif(find_spec("trl") is None, reason="holds chatml against Qwen's template as TRL ships it")
def test_chatml_writes_turns_calls_and_results_as_qwen_does() -> None:
    """Qwen2.5's template as TRL 1.16 ships it: all but the words around the signatures is the same text."""
    tokenizer = with_marks()
    give(tokenizer, "chatml")
    qwens = with_marks()
    folder = Path(str(find_spec("trl").origin)).parent  # type: ignore[union-attr]
    qwens.chat_template = (folder / "chat_templates" / "qwen2_5.jinja").read_text()
    for talk, tools in ((TALK, TOOLS), (TALK[:2], None), (TALK[:5], TOOLS), (TALK[:1] + TALK[5:7], None)):
        for reply in (False, True):
            ours, theirs = (
                one.apply_chat_template(talk, tools=tools, tokenize=False, add_generation_prompt=reply)
                for one in (tokenizer, qwens)
            )
            if tools:
                signatures = [re.search(r"<tools>\n.*?</tools>", text, re.S) for text in (ours, theirs)]
                assert signatures[0][0] == signatures[1][0]  # type: ignore[index]
                assert ours.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\n")
                ours, theirs = (text.partition("<|im_end|>")[2] for text in (ours, theirs))
            assert ours == theirs


def test_a_call_under_chatml_is_read_back_by_what_reads_hermes_calls() -> None:
    tokenizer = with_marks()
    give(tokenizer, "chatml")
    text = ChatFormat(tokenizer).template.render(TALK, TOOLS, reply=False)
    read = [
        json.loads(call) for call in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text.split("<|im_end|>", 1)[1])
    ]
    assert read == [{"name": "add", "arguments": call["function"]["arguments"]} for call in (*CALLS, CALLS[0])]


def test_tool_data_is_taught_on_tiny_under_chatml() -> None:
    tokenizer = chat_tokenizer(TINY, "chatml")
    (example,) = ChatFormat(tokenizer).encode(Demonstration(TALK, row=0, tools=TOOLS))
    taught = [token for token, flag in zip(example.input_ids, example.supervised, strict=True) if flag]
    assert str(tokenizer.decode(taught)).split("<|end|>")[1:] == [
        "Two.",
        'I ask.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "on": true, "é": "<ü>"}}\n</tool_call>',
        "",
    ]


# Where replies end


def test_replies_under_chatml_end_with_its_own_token_where_there_is_one(tmp_path: Path) -> None:
    tokenizer = with_marks()
    give(tokenizer, "chatml")
    chat = ChatFormat(tokenizer)
    assert tokenizer.convert_ids_to_tokens(chat.end_of_turn) == "<|im_end|>"
    assert chat.notes([]) == []
    stopping(chat).save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.eos_token == "<|im_end|>"
    assert saved.chat_template == tokenizer.chat_template


def test_replies_under_chatml_end_with_the_eos_where_its_token_is_missing(tmp_path: Path) -> None:
    """<|im_end|> in ten bytes would be text of the reply, and no generation ends there."""
    chat = ChatFormat(chat_tokenizer(TINY, "chatml"))
    (example,) = chat.encode(Demonstration([TALK[1], TALK[5]], row=0))
    taught = [token for token, flag in zip(example.input_ids, example.supervised, strict=True) if flag]
    assert taught == [*chat.tokenizer("Two.")["input_ids"], 256]
    assert chat.ends == {256}
    assert "<|im_end|>" not in chat.render(TALK[:2], reply=True)
    (note,) = chat.notes([])
    assert note.endswith("<|im_start|> is no token of this tokenizer and read as text; replies end with '<|end|>'")
    stopping(chat).save_pretrained(tmp_path)
    saved = ChatFormat(AutoTokenizer.from_pretrained(tmp_path))
    assert saved.prompt_ids(TALK[:2]) == chat.prompt_ids(TALK[:2])
    assert saved.ends == chat.ends


def test_marks_of_a_template_of_ones_own_that_are_no_tokens_are_said() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = FILE.replace("[{{", "<|turn|>[{{") + ASKING
    assert "<|turn|> is no token of this tokenizer and read as text; replies end with '<|end|>'" in str(
        ChatFormat(tokenizer).notes([])
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_can_be_taught_and_asked(name: str) -> None:
    for tokenizer in (tiny_tokenizer(), with_marks()):
        give(tokenizer, name)
        ChatFormat(tokenizer).template.check()
    assert jinja(name) == jinja(jinja(name))


# What is refused, before weights are loaded


def test_a_base_model_is_answered_by_the_line_to_add(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = base_model(tmp_path / "base")  # which has no weights at all
    for command in ("train", "data"):
        given = [command, f"model={folder}", f"output_dir={tmp_path}", "data.rows=4"]
        assert qtarget_cli(given) == 2
        error = capfd.readouterr().err
        assert f"the tokenizer of {folder} has no chat template" in error
        assert "add model.chat_template=chatml (" in error
    cfg = RunConfig.compose([*given[1:], "model.chat_template=chatml"])
    assert make_plan(cfg).prepared.counts["train"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }", "no valid Jinja: line 1: "),
        ("{% for m in messages %}{% if %}{% endfor %}", "no valid Jinja: line 1: "),
        (FILE, r"no generation prompt: it writes '\[assistant\]' before a reply"),
        ("{{ bos_token }}" + ASKING, "leaves out what messages of the role user say"),
        ("{{ messages[0]['content'] }}" + ASKING, "leaves out what messages of the role assistant say"),
        (FILE + "{{ raise_exception('never') }}", "refuses a conversation of these roles .*never"),
        (FILE + "{{ 1 / 0 }}", "refuses a conversation of these roles .*division by zero"),
        ("just text", "holds no Jinja"),
        ("", "holds no Jinja"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_what_is_wrong(text: str, message: str, workdir: Path) -> None:
    Path("mine.jinja").write_text(text)
    with pytest.raises(QTargetError, match=message):
        chat_tokenizer(TINY, "mine.jinja")


def test_a_template_in_the_style_of_mistral_needs_no_generation_prompt(workdir: Path) -> None:
    text = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    Path("mine.jinja").write_text(text + "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}")
    chat = ChatFormat(chat_tokenizer(TINY, "mine.jinja"))
    assert chat.render(TALK[1:2], reply=True) == "[INST] 1 + 1? [/INST]"


def test_a_file_that_is_not_there_is_refused_when_the_configuration_is_read(workdir: Path) -> None:
    Path("latin.jinja").write_bytes(b"{{ m }}\xff")
    for name, why in (("mine.jinja", "there is no such file"), ("chatlm", "chatml, plain"), ("latin.jinja", "utf-8")):
        with pytest.raises(QTargetError, match=f"model.chat_template={name} is no shipped template.*{why}"):
            RunConfig.compose(["model=tiny", f"model.chat_template={name}"])


# Identity


def test_the_content_of_a_template_is_part_of_a_runs_identity_and_its_place_is_not(workdir: Path) -> None:
    def identity(*given: str) -> str:
        return config_hash(compose_config("train", ["model=tiny", *given]))

    Path("one.jinja").write_text(FILE + ASKING)
    first = identity("model.chat_template=one.jinja")
    Path("below").mkdir()
    Path("below/two.jinja").write_text(FILE + ASKING + "\n")  # Jinja itself leaves out a last line break
    assert identity("model.chat_template=./below/two.jinja") == first
    read = RunConfig.compose(["model=tiny", "model.chat_template=one.jinja"])
    Path("one.jinja").write_text(FILE.replace("[", "(") + ASKING)
    assert identity("model.chat_template=one.jinja") != first
    assert read.hash == first  # what the run was is kept, whatever becomes of the file
    assert read.model.chat_template == FILE + ASKING
    names = {identity(f"model.chat_template={name}") for name in (*SHIPPED, "null")}
    assert len(names) == 3
    assert identity("model.chat_template=null") == identity() == "5d32033ab3b3"  # as before there were any


def test_the_llamas_plain_template_by_name_is_the_run_it_was_in_full() -> None:
    """The folder that an earlier build gave it, whose yaml held the template."""
    assert config_hash(compose_config("train", ["model=llama3_1_8b"])) == "3ef1633d225b"


def test_a_checkpoint_is_read_with_its_own_template(workdir: Path) -> None:
    run = workdir / "outputs" / "runs" / "one"
    tokenizer = chat_tokenizer(TINY, "chatml")
    stopping(ChatFormat(tokenizer)).save_pretrained(run / "checkpoint")
    tiny_config(len(tokenizer)).save_pretrained(run / "checkpoint")
    cfg = RunConfig.compose(["model=tiny", "model.chat_template=chatml"])
    assert cfg.model.chat_template == "chatml"  # a name is kept: tables and W&B show it
    (run / "config.yaml").write_text(to_yaml(cfg.container()))
    read = trained_config(str(run))
    assert read.model.chat_template is None
    loaded = chat_tokenizer(provide.resolve(read.model.name), read.model.chat_template)
    assert loaded.chat_template == tokenizer.chat_template

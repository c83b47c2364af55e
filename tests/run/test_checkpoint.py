"""What a checkpoint says to plain transformers: its replies end where the run's own evaluation ends them."""

from __future__ import annotations

import copy
import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import only_run
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from qtarget import QTargetError
from qtarget.cli import run as qtarget_cli
from qtarget.data.chat import ChatFormat
from qtarget.evaluate.generate import generate
from qtarget.evaluate.prompting import answer_problems
from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer
from qtarget.model.policy import Policy
from qtarget.run.exported_model import end_generation, stopping

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
OTHER_EOS = (  # closes a turn with a token of its own, and writes the eos behind the whole
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)


def tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """As of a pretrained model that is given a chat: its eos is the end of text."""
    made = tiny_tokenizer()
    made.add_tokens(["<|end_of_text|>", "<|im_start|>", "<|im_end|>"], special_tokens=True)
    made.eos_token = made.pad_token = "<|end_of_text|>"
    made.chat_template = template
    return made


def base(folder: Path, eos: list[int], template: str = CHATML) -> PreTrainedTokenizerFast:
    words = tokenizer(template)
    lm = tiny_model(tiny_config(len(words)))
    lm.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=None)
    lm.save_pretrained(folder)
    words.save_pretrained(folder)
    return words


RUN = ["train", "model=path", "model.name=base", "data=jsonl", "data.source.path=rows.jsonl", "data.rows=null"]
RUN += ["data.heldout_rows=null", "trainer.batch_size=8", "optim.lr=1e-2", "trainer.precision=32-true"]
RUN += ["trainer.accelerator=cpu", "trainer.eval_every=0", "eval.kl_prior=false"]


def teach(folder: Path, words: PreTrainedTokenizerFast) -> None:
    """The model of a folder with its rows learnt; where it ends stays as it was."""
    assert qtarget_cli([*RUN, "trainer.max_steps=60"]) == 0
    run = only_run(Path("outputs"))
    lm = AutoModelForCausalLM.from_pretrained(run / "checkpoint")
    lm.generation_config = GenerationConfig(eos_token_id=[256, 260], pad_token_id=None)
    lm.save_pretrained(folder)
    words.save_pretrained(folder)
    shutil.rmtree(run)


@pytest.mark.parametrize("case", ["all weights", "an adapter", "a plain template of ours"])
def test_plain_generate_writes_the_evaluations_answer_and_stops_where_it_does(case: str, workdir: Path) -> None:
    words = base(workdir / "base", [256, 260])
    rows = [json.dumps({"prompt": f"say {n}", "completion": "ok"}) for n in range(40)]
    Path("rows.jsonl").write_text("\n".join(rows))
    changes = {"all weights": [], "an adapter": ["model/adapter=lora", "optim.lr=1e-3"]}
    more = changes.get(case, ["model/common@model=plain_chat", f"model.chat_template={json.dumps(PLAIN)}"][1:])
    if case == "an adapter":  # which learns little on a random model
        teach(workdir / "base", words)
    assert qtarget_cli([*RUN, *more, f"trainer.max_steps={4 if case == 'an adapter' else 60}"]) == 0
    folder = only_run(Path("outputs")) / "checkpoint"
    read, lm = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    taught = words.convert_tokens_to_ids("<|im_end|>" if case in changes else "<|end_of_text|>")
    assert lm.generation_config.eos_token_id[0] == read.eos_token_id == taught
    assert {256, 260} <= set(lm.generation_config.eos_token_id)  # the model's own stay
    assert lm.generation_config.pad_token_id == words.pad_token_id
    assert read.chat_template == (CHATML if case in changes else PLAIN)
    talk = [{"role": "user", "content": "say 3"}]
    asked = read.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    start = asked["input_ids"].shape[1]
    plain = lm.generate(**asked, max_new_tokens=20, do_sample=False)[0, start:].tolist()
    assert plain[-1] == taught
    chat = ChatFormat(read)
    ours = generate(
        Policy(lm.eval(), len(read)),
        [chat.prompt_ids(talk)],
        ends=sorted(chat.ends),
        pad=int(read.pad_token_id),
        new_tokens=20,
        batch=1,
    )[0][0]
    assert ours.ended
    assert ours.ids == plain[:-1]
    assert read.decode(ours.ids) == "ok"


def test_a_checkpoint_is_evaluated_with_the_ends_of_its_run(tmp_path: Path) -> None:
    """Its eos is another one than the base model's, whose end of text still ends a reply."""
    words = tokenizer()
    stopping(ChatFormat(words)).save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert ChatFormat(read).ends == ChatFormat(words).ends == {260, 262}
    assert (words.eos_token, read.eos_token) == ("<|end_of_text|>", "<|im_end|>")
    stopping(ChatFormat(read)).save_pretrained(tmp_path)  # and so of a checkpoint trained from it
    assert ChatFormat(AutoTokenizer.from_pretrained(tmp_path)).ends == {260, 262}
    assert ChatFormat(tiny_tokenizer()).ends == {256}


def test_an_eos_that_the_template_writes_elsewhere_stays() -> None:
    words = tokenizer(OTHER_EOS)
    chat = ChatFormat(words)
    assert words.convert_ids_to_tokens(chat.end_of_turn) == "<|im_end|>"
    assert stopping(chat).eos_token == "<|end_of_text|>"


@pytest.mark.parametrize("own", [None, 7, [7, 262], [261, 262]])
def test_control_tokens_that_end_the_models_replies_are_kept_behind_the_taught_one(own: Any, tmp_path: Path) -> None:
    """Not 7, which is text here: plain generate() would break replies off.

    Also beside settings that transformers 5.23 refuses to save once they were changed.
    """
    settings = {"eos_token_id": own, "temperature": 0.6, "do_sample": False, "transformers_version": "5.23.0"}
    settings |= {"_from_model_config": True}
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(settings))
    end_generation(tmp_path, ChatFormat(tokenizer()))
    changed = json.loads(path.read_text())
    assert changed.pop("eos_token_id") == ([262, 260, 261] if own == [261, 262] else [262, 260])
    assert changed.pop("pad_token_id") == 260
    assert "_from_model_config" not in changed
    assert changed.items() <= settings.items()


def test_saving_leaves_the_runs_own_tokenizer_alone() -> None:
    words = tokenizer()
    before = copy.deepcopy(words.init_kwargs)
    stopping(ChatFormat(words))
    assert words.eos_token == "<|end_of_text|>"
    assert words.init_kwargs.keys() == before.keys()


def test_answers_end_at_the_token_that_ended_them_in_the_run() -> None:
    """A base model that writes its end of text is stopped, as it was when it was trained."""
    from qtarget.data.sources.reasoning_gym import ReasoningGym

    words = stopping(ChatFormat(tokenizer()))
    lm = tiny_model(tiny_config(len(words))).eval()

    def says_end_of_text(module: Any, given: Any, output: Any) -> Any:
        output.logits = torch.zeros_like(output.logits)
        output.logits[..., 260] = 1.0
        return output

    lm.register_forward_hook(says_end_of_text)
    rows = ReasoningGym("chain_sum", {}, system="").rows("heldout", 1)
    (sample,) = answer_problems(Policy(lm, len(words)), words, rows, new_tokens=3, batch=1)
    assert sample.ended
    assert sample.tokens == 0


SPEC = find_spec("trl")
SHIPPED = sorted((Path(str(SPEC.origin)).parent / "chat_templates").glob("*.jinja")) if SPEC else []
CONTROL = re.compile(r"<[|｜][^<>\n'\"{}]{1,40}[|｜]>|<(?:start|end)_of_\w+>|<end_of_utterance>|<turn\|>|<\|turn>")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_checkpoint_under_each_shipped_template_asks_and_ends_as_its_run_did(path: Path, tmp_path: Path) -> None:
    """Templates of TRL 1.16, several of which write the eos that the checkpoint's tokenizer changes."""
    words, template = tiny_tokenizer(), path.read_text()
    names = sorted({match[0] for match in CONTROL.finditer(template)})
    words.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    words.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>"})
    words.chat_template = template
    chat, talk = ChatFormat(words), [{"role": "user", "content": "a"}]
    (tmp_path / "generation_config.json").write_text("{}")
    end_generation(tmp_path, chat)
    saved = GenerationConfig.from_pretrained(tmp_path).eos_token_id
    assert (saved[0], set(saved)) == (chat.end_of_turn, chat.ends)
    stopping(chat).save_pretrained(tmp_path)
    read = ChatFormat(AutoTokenizer.from_pretrained(tmp_path))
    assert (read.end_of_turn, read.ends) == (chat.end_of_turn, chat.ends)
    try:
        asked = chat.prompt_ids(talk)
    except QTargetError:
        return
    assert read.prompt_ids(talk) == asked

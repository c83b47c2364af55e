"""A frozen model that reads rows with a hint in front: aligned token by token with what the policy reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training import other_policy

from qtarget import read_rows
from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config
from qtarget.config.identity import config_hash
from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Batch, Collate
from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration, Example
from qtarget.data.hints import with_hints
from qtarget.errors import QTargetError
from qtarget.lens.curves import marks
from qtarget.lens.reading import read_demonstrations
from qtarget.math.loss import IGNORE
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.cache import Cached
from qtarget.model.privileged import Privileged
from qtarget.run import build
from qtarget.run.estimate import _operations
from qtarget.run.plan import Plan, make_plan
from qtarget.run.stored_config import run_config

PRIVILEGED = ["target=kd", "reference@references.teacher=privileged"]
CACHED = ["target=kd", "reference@references.teacher=cached"]
SMALL = ["model=tiny", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_steps=2"]
SMALL += ["data.rows=8", "data.heldout_rows=2", "eval.kl_prior=false"]
HINT = "references.teacher.hint='The answer is {answer}.'"
USER, BOT = "user", "assistant"


def talk(*texts: str, **more: Any) -> Demonstration:
    messages = [{"role": (USER, BOT)[turn % 2], "content": text} for turn, text in enumerate(texts)]
    return Demonstration(messages, row=7, **more)


def planned(*more: str) -> Plan:
    return make_plan(RunConfig.compose([*SMALL, *PRIVILEGED, HINT, *more]))


def taught(example: Example) -> list[int]:
    """Tokens that are labels."""
    pairs = zip(example.input_ids, example.supervised, strict=True)
    return [token for token, supervised in list(pairs)[1:] if supervised]


def test_labels_are_those_of_the_row_and_the_prompt_is_that_of_the_row_with_its_hint() -> None:
    """Noise in the reply included: the teacher is asked about the tokens that are taught, right or wrong."""
    plan = planned("data/noise=wrong_answer", "data.noise.rate=0.5")
    chat = ChatFormat(plan.tokenizer)
    for plain, hinted, row in zip(plan.prepared.train, plan.hinted["teacher"], plan.prepared.train_rows, strict=True):
        first = dict(row.messages[0])
        assert first["role"] == USER or row.messages[1]["role"] == USER
        told = [dict(message) for message in row.messages]
        asked = next(message for message in told if message["role"] == USER)
        assert row.entry is not None
        asked["content"] = f"The answer is {row.entry['answer']}.\n\n{asked['content']}"
        prompt, before = chat.prompt_ids(told[:-1]), chat.prompt_ids(row.messages[:-1])
        assert list(hinted.input_ids) == [*prompt, *plain.input_ids[len(before) :]]
        assert not any(hinted.supervised[: len(prompt)])
        assert taught(hinted) == taught(plain)
        assert (hinted.first_label, hinted.labels) == (plain.first_label, plain.labels)


def test_all_turns_of_a_conversation_are_read_behind_one_hint() -> None:
    chat = ChatFormat(tiny_tokenizer())
    row = talk("2+2?", "4", "and 3 more?", "7", hint="think of apples")
    examples = chat.encode(row)
    (hinted,) = with_hints("Hint: {hint}", [row], [0] * len(examples), examples, chat)
    text = tiny_tokenizer().decode(hinted.input_ids)
    assert text.count("Hint: think of apples\n\n2+2?") == text.count("think of apples") == 1
    assert taught(hinted) == taught(examples[0])
    assert text.endswith(tiny_tokenizer().decode(examples[0].input_ids)[-20:])


def test_where_each_turn_is_an_example_each_has_the_hint() -> None:
    """As Qwen3's template: what stood in a reply is written otherwise once it is history."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>"
        "{{ m.content if loop.last or m.role != 'assistant' else m.content | upper }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    chat = ChatFormat(tokenizer)
    row = talk("ask", "first reply", "more", "second reply", hint="a hint")
    examples = chat.encode(row)
    assert len(examples) == 2
    for plain, hinted in zip(examples, with_hints("{hint}", [row], [0, 0], examples, chat), strict=True):
        assert taught(hinted) == taught(plain)
        assert tokenizer.decode(hinted.input_ids).startswith("<user>a hint\n\nask")
        assert len(hinted) - len(plain) == len("a hint\n\n")


def test_weights_of_the_data_go_with_their_tokens() -> None:
    chat = ChatFormat(tiny_tokenizer())
    row = talk("ask", "some reply", hint="a hint", weight=0.5, weights=[(0, 4, 0.0)])
    (plain,) = chat.encode(row)
    (hinted,) = with_hints("{hint}", [row], [0], [plain], chat)
    assert plain.weights is not None
    assert hinted.weights is not None
    assert list(hinted.weights[-12:]) == list(plain.weights[-12:])
    assert taught(hinted) == taught(plain)


def batch_of(plan: Plan, *indices: int) -> Batch:
    return Collate(256)([plan.prepared.train[index] for index in indices])


def test_what_it_says_is_the_model_behind_the_hint_token_by_token() -> None:
    plan, policy = planned(), other_policy()
    frozen = Privileged(policy, plan.hinted["teacher"], Collate(256))
    batch = batch_of(plan, 5, 1, 6)
    labels = batch.labels[batch.labels != IGNORE]
    got = frozen.reference(batch).at(labels, torch.empty(len(labels), 260)).logp
    expected = []
    for index in (5, 1, 6):
        example = plan.hinted["teacher"][index]
        with torch.no_grad():
            logits = policy.lm(torch.tensor([example.input_ids])).logits[0]
        at = [position - 1 for position, on in enumerate(example.supervised) if on and position]
        expected.append(logits[at].log_softmax(-1))
    torch.testing.assert_close(got, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_packed_rows_read_the_same() -> None:
    plan, policy = planned("data.packing=400"), other_policy()
    frozen = Privileged(policy, plan.hinted["teacher"], Collate(256))
    packs: Any = plan.prepared.rows
    packed = Collate(256)([packs[0]])
    apart = Collate(256)(list(packs[0]))
    assert len(packs[0]) > 1
    rows = [frozen.exact(batch).rows for batch in (packed, apart)]
    torch.testing.assert_close(*rows)


def test_a_batch_of_other_rows_is_refused() -> None:
    plan = planned()
    frozen = Privileged(other_policy(), plan.hinted["teacher"], Collate(256))
    with pytest.raises(QTargetError, match="and no others"):
        frozen.exact(Collate(256)(list(plan.prepared.heldout)))


def test_a_batch_without_labels_has_no_rows() -> None:
    plan = planned()
    frozen = Privileged(other_policy(), plan.hinted["teacher"], Collate(256))
    batch = batch_of(plan, 0)
    batch.labels.fill_(IGNORE)
    assert len(frozen.reference(batch)) == 0


def test_a_cache_of_it_says_the_same_and_another_hint_is_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QTARGET_CACHE", str(tmp_path))
    plan = make_plan(RunConfig.compose([*SMALL, *CACHED, HINT]))
    _, frozen = build.load_models(plan)
    held = frozen["teacher"]
    assert isinstance(held, Cached)
    live = build.load_models(planned())[1]["teacher"]
    batch = batch_of(plan, 2, 0)
    labels = batch.labels[batch.labels != IGNORE]
    cached, read = (one.reference(batch).at(labels, torch.empty(len(labels), 260)).logp for one in (held, live))
    torch.testing.assert_close(cached, read, atol=1e-5, rtol=1e-5)
    other = make_plan(RunConfig.compose([*SMALL, *CACHED, "references.teacher.hint='It is {answer}.'"]))
    assert other.caches["teacher"].folder != plan.caches["teacher"].folder
    assert not other.caches["teacher"].is_built


def test_rows_that_do_not_fit_with_their_hint_are_refused_with_a_way_that_works() -> None:
    longest = max(map(len, planned().prepared.train))  # a byte is a token of the tiny model, which has 1024
    hint = f"references.teacher.hint={'x' * (1024 - longest)}"
    with pytest.raises(QTargetError, match=r"[1-7] of 8 examples are longer than the 1024 tokens") as refused:
        planned(hint)
    way = str(refused.value).split("set ")[1].split(", which")[0]
    plan = planned(hint, *way.split())
    assert 0 < plan.prepared.counts["dropped_too_long"] < 8
    assert max(map(len, plan.hinted["teacher"])) <= 1024


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        ("{hint}", r"row \d+ has no hint, .* data\.source\.hint"),
        ("{solution}", "a name in references.teacher.hint must be one of hint, answer, completion"),
        ("{answer", "can't be read"),
    ],
)
def test_hints_that_rows_lack_are_named(hint: str, message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        planned(f"references.teacher.hint='{hint}'")


@pytest.mark.parametrize("columns", [[], ["data.source.prompt=prompt", "data.source.completion=completion"]])
def test_the_line_that_gives_rows_an_answer_gives_them_one(columns: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"ask {number}", "completion": "reply", "answer": f"it's {number}"} for number in range(8)]
    path.write_text("\n".join(map(json.dumps, rows)))
    given = ["data=files", f"data.source.path={path}", "data.rows=2", "data.heldout_rows=1", *columns]
    given += ["data.source.heldout_share=0.5"]
    with pytest.raises(QTargetError, match="has no answer") as refused:
        planned(*given)
    way = str(refused.value).partition(": add ")[2].partition(",")[0].split()
    plan = planned(*given, *way)
    text = plan.tokenizer.decode(plan.hinted["teacher"][0].input_ids)
    assert "The answer is it's " in text


@pytest.mark.parametrize("kind", [PRIVILEGED, CACHED])
def test_prompts_that_are_taught_are_refused_before_rows_are_read(kind: list[str]) -> None:
    with pytest.raises(
        QTargetError, match=r"data\.prompt_weight=0\.25 .* references\.teacher\.hint .* data\.prompt_weight=0,"
    ):
        RunConfig.compose([*SMALL, *kind, HINT, "data.prompt_weight=0.25"])
    RunConfig.compose([*SMALL, *kind, HINT, "data.prompt_weight=0"])
    RunConfig.compose([*SMALL, *CACHED, "references.teacher.name=tiny", "data.prompt_weight=0.25"])


def test_a_fixed_text_is_the_same_for_all_rows() -> None:
    plan = planned("references.teacher.hint='Work carefully, {{so}}.'")
    for example in plan.hinted["teacher"]:
        assert "Work carefully, {so}.\n\n" in plan.tokenizer.decode(example.input_ids)


def test_a_row_of_a_file_brings_its_hint_and_so_does_a_column(tmp_path: Path) -> None:
    rows = [{"prompt": "ask", "completion": "reply", "hint": "told", "steps": "a, b"}] * 2
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (first, _) = read_rows(path)
    assert first.hint == "told"
    assert first.unread == ["steps"]
    (first, _) = read_rows(path, prompt="prompt", completion="completion", hint="By {steps}")
    assert first.hint == "By a, b"
    path.write_text(json.dumps({**rows[0], "hint": 3}))
    assert read_rows(path)[0].hint == ""  # no text: a key that nobody reads, as before


@pytest.mark.parametrize("data", ["files", "hub", "jsonl"])
def test_a_key_is_named_as_the_hint_of_a_recognised_schema(data: str, tmp_path: Path) -> None:
    """As the documents write it; null leaves a run where it was."""
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"ask {number}", "completion": "reply", "steps": f"a, {number}"} for number in range(8)]
    path.write_text("\n".join(map(json.dumps, rows)))
    given = [*SMALL, *PRIVILEGED, f"data={data}", f"data.source.path={path}", "data.source.heldout_share=0.5"]
    given += ["data.rows=2", "data.heldout_rows=1", "references.teacher.hint='So: {hint}.'"]
    assert config_hash(compose_config("train", given)) == config_hash(
        compose_config("train", [*given, "data.source.hint=null"])
    )
    plan = make_plan(RunConfig.compose([*given, "data.source.hint=steps"]))
    for example, row in zip(plan.hinted["teacher"], plan.prepared.train_rows, strict=True):
        number = row.messages[0]["content"].removeprefix("ask ")
        assert f"So: a, {number}.\n\nask" in plan.tokenizer.decode(example.input_ids)
        assert row.unread == []
    with pytest.raises(QTargetError, match=r"'step'.*data\.source\.hint"):
        make_plan(RunConfig.compose([*given, "data.source.hint=step"]))


def test_it_is_a_teacher_without_a_name_and_a_hint_of_a_prior_is_refused() -> None:
    cfg = RunConfig.compose([*SMALL, *PRIVILEGED, HINT])
    assert cfg.reference_name("teacher") == "tiny"
    with pytest.raises(QTargetError, match=r"references\.prior\.hint is for a teacher"):
        RunConfig.compose([*SMALL, "reference@references.prior=cached", "references.prior.hint=told"])
    with pytest.raises(QTargetError, match=r"references\.prior must be one of"):
        RunConfig.compose([*SMALL, "reference@references.prior=privileged"])


def test_the_hint_is_part_of_a_runs_identity() -> None:
    hashes = {
        config_hash(compose_config("train", [*SMALL, *kind, f"references.teacher.hint={hint}"]))
        for kind in (PRIVILEGED, CACHED)
        for hint in ("one", "two")
    }
    assert len(hashes) == 4


def test_a_dry_run_counts_the_longer_rows() -> None:
    short, long = planned("references.teacher.hint=a"), planned("references.teacher.hint='" + "a " * 200 + "'")
    policy = other_policy()
    assert _operations(long, policy, 100, 10) > _operations(short, policy, 100, 10)


def test_a_run_trains_on_it_and_its_lens_and_evaluation_ask_the_model_that_training_started_from(
    workdir: Path,
) -> None:
    assert qtarget_cli(["train", *SMALL, *PRIVILEGED, HINT, "trainer.max_steps=1", "trainer.eval_every=0"]) == 0
    (run,) = workdir.glob("outputs/runs/*/checkpoint")
    cfg = run_config(str(run.parent))
    assert cfg.references["teacher"].model(cfg.model.name) == "tiny"
    assert cfg.references["teacher"].hint_template == "The answer is {answer}."
    (read,) = read_demonstrations(str(run.parent), {"kd": marks(["kd"])[0]}, rows=1).rows
    assert len(read.readings) == 1
    assert len(read.readings[0].pulls) == sum(token.supervised for token in read.tokens)

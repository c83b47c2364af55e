"""A text's tokens are those that transformers' own call gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtarget.data.sources.jsonl import Jsonl
from qtarget.data.template import Template
from qtarget.data.tokenise import Tokeniser
from qtarget.model.builtin import tiny_tokenizer

TEXTS = ("2 + 2 = 4", "  größer\n\nals ", "<|im_end|>", "a <|im_start|> b", "日本語\u200d👍", "x" * 500)


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_places_are_those_of_a_call_whatever_the_call_before_asked_for(text: str, as_text: bool) -> None:
    tokenizer = tiny_tokenizer()
    expected = tokenizer(text, add_special_tokens=False, split_special_tokens=as_text, return_offsets_mapping=True)
    tokens = Tokeniser(Template(tokenizer))
    tokenizer(["a", text], padding=True, truncation=True, max_length=3, split_special_tokens=not as_text)
    read = tokens._tokens(text, as_text=as_text)
    assert tokens._backend is not None
    assert read.ids == expected["input_ids"]
    assert read.offsets == [tuple(place) for place in expected["offset_mapping"]]


def test_a_tokenizer_whose_class_reads_texts_in_its_own_way_is_called() -> None:
    tokenizer = tiny_tokenizer()

    class Doubling(type(tokenizer)):  # type: ignore[misc]
        def _encode_plus(self, text: str, *others: object, **options: object) -> object:
            return super()._encode_plus(text + text, *others, **options)

    tokenizer.__class__ = Doubling
    assert Tokeniser(Template(tokenizer)).ids("ab") == tiny_tokenizer()("abab", add_special_tokens=False)["input_ids"]


def test_a_file_is_read_once_for_each_side_and_once_for_what_a_share_holds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"question {row}", "completion": str(row)} for row in range(200)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    reads: list[int] = []
    lines = Jsonl._lines

    def counted(self: Jsonl) -> Iterator[tuple[int, bytes]]:
        place = len(reads)
        reads.append(0)
        for line in lines(self):
            reads[place] += 1
            yield line

    monkeypatch.setattr(Jsonl, "_lines", counted)
    source = Jsonl(str(path))
    source.read_shared("train", None, 5)
    source.read_shared("heldout", 5, 5)
    whole, parts = [count for count in reads if count == 200], [count for count in reads if 1 < count < 200]
    assert (len(whole), len(parts)) == (2, 1)  # each side, and as far as it takes what is held out
    assert set(reads) - {*whole, *parts} == {1}  # the schema, of the first row

"""Folders of data with links in them: what a link leads to counts as if it lay there, or is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from qtarget.config.composing import compose_config
from qtarget.config.identity import config_hash
from qtarget.data.module import DataConfig
from qtarget.data.recipe import recipe, recipe_digest
from qtarget.data.sources.data_files import Files
from qtarget.errors import QTargetError
from qtarget.model.builtin import tiny_tokenizer

CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {}\n---\n"
Keys = tuple[str, str]


@pytest.fixture(autouse=True)
def own_cache(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", workdir / "cache")


def rows(answer: str) -> list[dict[str, str]]:
    return [{"prompt": f"ask {index}", "completion": answer} for index in range(20)]


def write(path: Path, answer: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(answer)))


def card_with_a_linked_folder(folder: Path, store: Path, answer: str) -> None:
    write(store / "a.jsonl", answer)
    (folder / "README.md").write_text(CARD.format("data/*.jsonl"))
    (folder / "data").symlink_to(store.absolute())


def saved_with_a_linked_split(folder: Path, store: Path, answer: str) -> None:
    saved = datasets.DatasetDict(train=datasets.Dataset.from_list(rows(answer)))
    saved.save_to_disk(str(store))
    shutil.copy(store / "dataset_dict.json", folder)
    (folder / "train").symlink_to((store / "train").absolute())


def linked_files(folder: Path, store: Path, answer: str) -> None:
    write(store / "a.jsonl", answer)
    (folder / "train.jsonl").symlink_to((store / "a.jsonl").absolute())


def keys(folder: str) -> Keys:
    """Of prepared data, and of a run."""
    source = Files(folder)
    overrides = ["model=tiny", "data=files", f"data.source.path={folder}", "data.rows=null"]
    prepared = recipe(DataConfig(source, rows=None), tiny_tokenizer(), 1024)
    return recipe_digest(prepared), config_hash(compose_config("train", overrides))


@pytest.mark.parametrize("make", [card_with_a_linked_folder, saved_with_a_linked_split, linked_files])
def test_the_keys_are_of_what_links_lead_to(make: Callable[[Path, Path, str], None]) -> None:
    """The same content under another path has the same keys, and a link that leads back up no end."""
    known: dict[str, Keys] = {}
    for answer in ("one", "two"):
        folder, store = Path(answer, "set"), Path("stores", answer)
        folder.mkdir(parents=True)
        make(folder, store, answer)
        assert Files(str(folder)).rows("train", 1)[0].completion == answer
        known[answer] = keys(str(folder))
    assert not set(known["one"]) & set(known["two"])
    shutil.copytree("one/set", "copied/set")  # with files in the place of links
    Path("linked").mkdir()
    Path("linked/set").symlink_to(Path("one/set").absolute())
    assert keys("copied/set") == keys("linked/set") == known["one"]
    Path("one/set/again").symlink_to(Path("one").absolute())
    assert keys("one/set") == known["one"]


def test_files_behind_a_link_that_would_not_be_read_are_refused() -> None:
    """datasets 5.2 looks into no folder that a link leads to, unless a card names what is in it."""
    write(Path("set/train.jsonl"), "one")
    write(Path("elsewhere/more.jsonl"), "two")
    Path("set/data").symlink_to(Path("elsewhere").absolute())
    with pytest.raises(QTargetError, match=r"set: data/more.jsonl would not be read, since a link leads to .*: name"):
        Files("set").rows("train", None)


def test_a_card_that_names_files_outside_of_its_folder_is_refused() -> None:
    """They would be read, and no key would tell of them."""
    write(Path("elsewhere/train.jsonl"), "two")
    Path("set").mkdir()
    Path("set/README.md").write_text(CARD.format("../elsewhere/train.jsonl"))
    with pytest.raises(QTargetError, match=r"the card of set names .*outside of the folder: move it into the folder"):
        Files("set").rows("train", None)

"""Which configurations read models and files that an earlier build read otherwise.

- Local CSV and JSON files. Up to 0.1.0 `datasets` 5.2 read them: pandas typed the columns of CSV, and in JSON a number
  among texts made numbers of the texts that look like one, and a block of ISO dates became times.
- Models with a multiplier or a cap of their logits, which the loss left out.
- Conversations: where a reply begins and ends, by the tokenizer and its template.
- Parquet and Arrow files whose names are patterns, such as v[1].parquet, which was read as v1.parquet.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from qtarget.data.sources.conversation import columns_of
from qtarget.data.sources.file_rows import FilePart, FileRows, form
from qtarget.data.sources.written import WrittenNumber, parsed
from qtarget.data.thought import is_control
from qtarget.errors import QTargetError
from qtarget.files import files_below
from qtarget.model import chat_template
from qtarget.model.fingerprint import model_folder, names_a_folder

Node = Mapping[str, Any]
Columns = tuple[str, ...] | None
HUB, JSONL = "qtarget.data.sources.hub.Hub", "qtarget.data.sources.jsonl.Jsonl"
TEXTS = ("messages", "prompt", "completion", "answer", "key")
BLOCK = 10_000
"""Rows of which pandas chose the types together."""
LARGEST = 1 << 28
"""Bytes of a file that is looked through; a larger one counts as retyped."""
NOTHING = {
    "",
    "#n/a",
    "#n/a n/a",
    "#na",
    "-1.#ind",
    "-1.#qnan",
    "-nan",
    "1.#ind",
    "1.#qnan",
    "<na>",
    "n/a",
    "na",
    "nan",
    "null",
    "none",
    "true",
    "false",
}
"""What pandas 3 reads as nothing, or as true or false, in lower case."""
DATE = re.compile(r"\d{4}-\d\d-\d\d")


def reads_retyped_files(source: Node) -> bool:
    """Whether a source of data reads such a file. Ids of the hub: never."""
    try:
        if source.get("_target_") == HUB:
            columns = _columns(source)
            if any(
                _is_narrow(*file_state(file), columns)
                for file in local_files(source, lambda file: file.suffix.lower() == ".parquet")
            ):
                return True
            delimiter = source.get("delimiter")
            return any(_is_retyped(*file_state(file), columns, delimiter) for file in local_files(source, form))
        path = Path(str(source.get("path")))
        judged = source.get("_target_") == JSONL and source.get("verifier")
        return bool(judged) and path.is_file() and _is_reworded(*file_state(path))
    except QTargetError:
        return True  # the run itself says what is wrong


def local_files(source: Node, wanted: Callable[[Path], object]) -> Iterator[Path]:
    """Those wanted of the local files that a source names, and of those in folders that it names."""
    for path in (Path(name).expanduser() for name in _names(source)):
        files = files_below(path) if path.is_dir() else [path]
        yield from (file for file in files if wanted(file) and file.is_file())


def _names(source: Node) -> list[str]:
    entries = [source.get("path"), *(source.get("files") or {}).values()]
    return [str(name) for entry in entries for name in (entry if isinstance(entry, list) else [entry]) if name]


def names_a_pattern(source: Node) -> bool:
    """Whether a source names a Parquet or Arrow file that `datasets` took for a pattern, and others' names fit it."""
    return any(map(is_read_as_pattern, [*_names(source), str(source.get("heldout"))]))


def is_read_as_pattern(name: str) -> bool:
    """The same of a file."""
    path = Path(name).expanduser().absolute()
    if path.suffix.lower() not in (".parquet", ".arrow") or not glob.has_magic(str(path)) or not path.is_file():
        return False
    return glob.glob(str(path)) != [str(path)]


@lru_cache(maxsize=256)
def _is_narrow(file: Path, _size: int, _mtime: int, _ctime: int, columns: Columns) -> bool:
    """Whether a column of Parquet that is shown as text holds numbers of 16 or 32 bits, once shown with 64's digits."""
    import pyarrow  # takes a while, and only this kind of file needs it
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (OSError, pyarrow.ArrowException):
        return False  # the run itself says what is wrong
    narrow = {field.name for field in schema if field.type in (pyarrow.float32(), pyarrow.float16())}
    return bool(narrow & (narrow if columns is None else set(columns)))


def _columns(source: Node) -> Columns:
    """Those that are read; None: any."""
    options = source.get("options")
    if source.get("adapt"):
        return None
    named = [column for field in TEXTS if source.get(field) for column in columns_of(source[field])]
    named += [options] if isinstance(options, str) else options if isinstance(options, list) else []
    return tuple({*named, *(source.get("where") or {})})


def file_state(file: Path) -> tuple[Path, int, int, int]:
    """What a result is kept under: the file, its size and its times."""
    stat = file.stat()
    return file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@lru_cache(maxsize=256)
def _is_retyped(file: Path, size: int, _mtime: int, _ctime: int, columns: Columns, delimiter: str | None) -> bool:
    if size > LARGEST:
        return True
    kind = form(file)
    assert kind
    rows = FileRows((FilePart((file,)),), kind, delimiter, columns)
    return _is_csv_retyped(rows) if kind == "csv" else _is_json_retyped(rows)


def _is_csv_retyped(rows: FileRows) -> bool:
    """A cell that stood for nothing, or a block of a column that is all numbers."""
    left = iter(rows)
    while block := list(islice(left, BLOCK)):
        for column in block[0]:
            cells = [str(row[column] or "").strip() for row in block]
            if any(cell.lower() in NOTHING for cell in cells) or all(map(_is_number, cells)):
                return True
    return False


def _is_json_retyped(rows: FileRows) -> bool:
    """A number that is written in another way than Python's, a date, or numbers beside texts that look like one."""
    texts: set[str] = set()
    others: set[str] = set()
    for key, value in (pair for row in rows for pair in _values(row)):
        if isinstance(value, WrittenNumber) and str(float(value)) != value.written:
            return True
        if isinstance(value, str) and DATE.match(value):
            return True
        if not isinstance(value, str):
            others.add(key)
        elif _is_number(value) or value.lower() in NOTHING:
            texts.add(key)
        if texts & others:
            return True
    return False


def _values(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that isn't null."""
    if isinstance(node, Mapping):
        yield from (pair for name, value in node.items() for pair in _values(value, f"{key}.{name}"))
    elif isinstance(node, list):
        yield from (pair for value in node for pair in _values(value, f"{key}[]"))
    if node is not None and key:
        yield key, node


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=256)
def _is_reworded(file: Path, size: int, _mtime: int, _ctime: int) -> bool:
    """Whether an answer is a number that Python writes in another way than the file: 1.50, 1e3."""
    if size > LARGEST:
        return True
    with file.open("rb") as lines:
        answers = (parsed(line).get("answer") for line in lines if line.strip())
        return any(isinstance(answer, WrittenNumber) and str(float(answer)) != answer.written for answer in answers)


# Models and their templates

LOGIT_KEYS: Mapping[str, tuple[str, float | None, float | None]] = {
    "falcon_h1": ("lm_head_multiplier", 1.0, 1.0),
    "hyperclovax": ("logits_scaling", 1.0, 1.0),
    "inkling_text": ("logits_mup_width_multiplier", 24.0, 1.0),
    "mpt": ("logit_scale", None, None),
    "recurrent_gemma": ("logits_soft_cap", 30.0, None),
    "xlstm": ("output_logit_soft_cap", 30.0, None),
    "gemma3n": ("final_logit_softcapping", 30.0, None),
    "gemma4": ("final_logit_softcapping", None, None),
    "gemma4_unified": ("final_logit_softcapping", None, None),
}
"""model_type → the key that wasn't read, its value where config.json leaves it out, the value that does nothing."""

HUB_NAMES = re.compile(r"falcon-?h1|hyperclova|recurrent-?gemma|xlstm|inkling|gemma-?3n|gemma-?4", re.IGNORECASE)
"""Of the same families, where no config.json is at hand."""


def head_changed(config: Mapping[str, Any]) -> bool:
    """Whether a model with this configuration, as plain data, has other logits since."""
    known = LOGIT_KEYS.get(str(config.get("model_type")))
    if known is None:
        return False
    key, default, without = known
    node: Mapping[str, Any] = config.get("text_config") or config
    return bool(node.get(key, default) != without)


def named_head_changed(name: str) -> bool:
    """The same of a model by name: of a folder by its config.json, of a hub id by the family in its name."""
    if not names_a_folder(name):
        return HUB_NAMES.search(name) is not None
    try:
        text = (model_folder(name) / "config.json").read_text(encoding="utf-8")
        return head_changed(json.loads(text))
    except (OSError, ValueError, AttributeError, QTargetError):
        return False  # the job itself says what is missing


_MARKED = re.compile(rb'"type"\s*:\s*"(Metaspace|Prepend)"|"add_prefix_space"\s*:\s*true')
"""Of a tokenizer.json: what puts a mark before a text, so that a reply was read as if a text began with it."""
_ADDED = re.compile(rb'"content"\s*:\s*("(?:[^"\\]|\\.)*")[^{}]*"special"\s*:\s*(true|false)')
_OTHER = ("strftime_now", "<|return|>", "<|END_RESPONSE|>")
"""In templates: today's date, and ends of turn that were taken for the first special token behind a reply."""


def has_other_conversations(config: Mapping[str, Any]) -> bool:
    """Of a resolved configuration, as far as the files beside it tell: a model of the hub is not looked up."""
    model = config["model"]
    folder, own = _folder(model.get("name")), chat_template.content(model.get("chat_template"))
    template = own or _template(folder)
    if any(mark in template for mark in _OTHER):
        return True
    tokenizer = _bytes(folder, "tokenizer.json").partition(b'"vocab"')[0]
    special, others = _added(tokenizer, b"true"), _added(tokenizer, b"false")
    if bool(_MARKED.search(tokenizer)) or any(is_control(token) and token in template for token in others):
        return True
    return any(token.encode() in content for content in _row_files(config["data"]) for token in special)


def _folder(name: Any) -> Path | None:
    try:
        return model_folder(name) if isinstance(name, str) and names_a_folder(name) else None
    except QTargetError:
        return None  # the job itself says what is missing


def _template(folder: Path | None) -> str:
    """Of chat_template.jinja and of tokenizer_config.json, which also lists tokens that a template doesn't write."""
    config = _bytes(folder, "tokenizer_config.json") or b"{}"
    own = _bytes(folder, "chat_template.jinja").decode(errors="replace")
    try:
        return f"{own}{json.loads(config).get('chat_template', '')}"
    except (ValueError, AttributeError):  # the job itself says what is wrong with it
        return own


def _added(tokenizer: bytes, special: bytes) -> set[str]:
    """Tokens that a tokenizer.json calls special (true), or doesn't (false)."""
    return {json.loads(token) for token, called in _ADDED.findall(tokenizer) if called == special} - {""}


def _row_files(node: Mapping[str, Any]) -> Iterator[bytes]:
    """The content of local files of rows that a node and those below it name as `path`, but for those of streams."""
    if node.get("streaming"):
        return
    for value in node.values():
        if isinstance(value, Mapping):
            yield from _row_files(value)
    if isinstance(path := node.get("path"), str):
        file = Path(path).expanduser()
        if file.suffix in (".jsonl", ".json", ".csv") and file.is_file():
            yield file.read_bytes()


def _bytes(folder: Path | None, name: str) -> bytes:
    return (folder / name).read_bytes() if folder is not None and (folder / name).is_file() else b""

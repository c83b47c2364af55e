"""Which files a split of a data set is. `datasets` reads Parquet, Arrow and the hub, `file_rows` local CSV and JSON."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from qtarget.data.sources.conversation import listed
from qtarget.data.sources.file_rows import FORMATS, PACKED, FilePart, FileRows, Table, Typed, form
from qtarget.data.sources.missing import missing_data
from qtarget.errors import QTargetError
from qtarget.files import file_facts, files_below

TYPED = {".parquet": "parquet", ".arrow": "arrow"}
BUILDERS = {"Csv": "csv", "Json": "json"}
"""Class of a builder of `datasets` 5 → the format whose types it guesses."""
CHECKED = {*BUILDERS, "Parquet", "Arrow"}
"""Builders whose files are known by the endings of their names."""
SAID = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "metadata.json", "config.json")
"""Files that say something of a data set and are none of its data."""
READ = ("data_files", "data_dir", "features", "name", "version", "description", "sep", "delimiter")
"""Of what a data card may say of its CSV and JSON files, what is heeded or makes no difference."""


class Named(Protocol):
    """What a data set is called: see `qtarget.data.sources.data_files.Files`."""

    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def files(self) -> Mapping[str, Any] | None: ...
    @property
    def train(self) -> str | None: ...
    @property
    def delimiter(self) -> str | None: ...
    @property
    def streaming(self) -> bool: ...
    @property
    def called(self) -> str: ...


def loaded(source: Named, split: str) -> Table:
    """The rows of a split. Raises QTargetError for what isn't there or can't be loaded."""
    local = Path(source.path).expanduser()
    given = {**({str(source.train): source.path} if local.is_file() else {}), **(source.files or {})}
    if given:
        return _of_files(source, _checked_files(given, split), split)
    if local.is_dir():
        _check_not_empty(local)
        return _of_saved(source, local, split) if _is_saved(local) else _of_folder(source, local, split)
    check_is_there(source.path, "data.source.path")
    return Typed(_asked(source, split, path=source.path, name=source.name, revision=source.revision))


def check_is_there(path: str, key: str) -> None:
    """Raise QTargetError where a path, which is no id of the hub, names nothing. key: the setting that has it."""
    is_path = path.startswith((".", "/", "~")) or _has_suffix(path)
    if is_path and not Path(path).expanduser().exists():
        raise missing_data(path, key, f"a file of {listed([*TYPED, *FORMATS])}, or a folder of them")


def _check_not_empty(folder: Path) -> None:
    if next(files_below(folder), None) is None:
        raise QTargetError(
            f"the folder {folder} holds no files: set data.source.path to a file of {listed([*TYPED, *FORMATS])}, or "
            "to a folder of them"
        )


def is_local(source: Named) -> bool:
    """Whether a data set is files of this machine, and none of the hub."""
    return bool(source.files) or Path(source.path).expanduser().exists()


def table_files(source: Named, split: str) -> list[Path]:
    """Where `datasets` keeps a split of a data set of the hub. Raises QTargetError as `loaded` does."""
    table = loaded(source, split)
    assert isinstance(table, Typed)
    return [Path(held["filename"]) for held in table.table.cache_files]


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file or folder, and none of a split: it has a slash, or the suffix of a data file."""
    return "/" in name or _has_suffix(name)


def _has_suffix(name: str) -> bool:
    return form(Path(name)) is not None or Path(name).suffix.lower() in TYPED


def only_split(path: str) -> str:
    """The split of a folder that has one, whatever it is called; "train" of a file and of any other folder."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return "train"
    import datasets

    try:
        if _is_saved(folder):
            saved = datasets.load_from_disk(str(folder))
            names = list(saved) if isinstance(saved, datasets.DatasetDict) else []
        else:
            names = list(datasets.load_dataset_builder(str(folder)).config.data_files or ())
    except Exception:  # loading it says what is wrong
        return "train"
    return str(names[0]) if len(names) == 1 else "train"


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` has written a folder."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def _of_saved(source: Named, folder: Path, split: str) -> Table:
    """A folder of `save_to_disk`: of a Dataset, whose rows are those to train on, or of a DatasetDict."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # files that lack or are cut: pyarrow and file systems each raise their own
        raise _not_loaded(source, split, error) from error
    splits = saved if isinstance(saved, datasets.DatasetDict) else {str(source.train): saved}
    if split not in splits:
        raise QTargetError(
            f"{source.path} has no split {split!r}; those saved: {listed(splits)}. Name one with data.source.train, "
            "and another, or a file, with data.source.heldout"
        )
    table = splits[split].with_format(None)  # as plain values, whatever it was saved to be given as
    return Typed(table.to_iterable_dataset() if source.streaming else table)


def _of_files(source: Named, files: list[Path], split: str) -> Table:
    written = form(files[0])
    if written:
        return FileRows((FilePart(tuple(files)),), written, source.delimiter)
    named: dict[str, Any] = {
        "path": TYPED[files[0].suffix.lower()],
        "data_files": {split: [glob.escape(str(file.absolute())) for file in files]},
    }
    return Typed(_asked(source, split, cache_dir=_cache(files), **named))


def _of_folder(source: Named, folder: Path, split: str) -> Table:
    """A folder, whose card and names of files say what belongs to a split."""
    named: dict[str, Any] = {"path": str(folder), "name": source.name}
    _check_no_pattern(folder)
    builder = _asked(source, split, built=True, **named)
    if builder.config.data_files is not None:
        _check_inside(source, folder, builder)
        _check_names(source, builder)
        _check_left_out(source, folder, builder)
    written = next((BUILDERS[base.__name__] for base in type(builder).__mro__ if base.__name__ in BUILDERS), None)
    if written is None:
        cache = _cache(files_below(folder))
        return Typed(_asked(source, split, cache_dir=cache, **named))
    _check_settings(source, builder.config)
    files = {str(name): tuple(map(Path, held)) for name, held in builder.config.data_files.items()}
    delimiter = source.delimiter or _own_delimiter(builder.config)
    return FileRows(_parts(source, files, split, written, delimiter), written, delimiter)


def _check_no_pattern(folder: Path) -> None:
    """`datasets` 5 looks for a folder's files by patterns that begin with its path: v[1] is read as v1."""
    path = folder.resolve()
    if glob.has_magic(str(path)):
        raise QTargetError(
            f"{path}: the signs [, * and ? in the name of a folder are read as a pattern of other folders' names: "
            "rename the folder, or name its files in data.source.files={SPLIT: [FILE, …]}"
        )


def _check_inside(source: Named, folder: Path, builder: Any) -> None:
    """What a folder holds is what a run on it is known by."""
    read = [file for held in builder.config.data_files.values() for file in held]
    if others := sorted({file for file in read if not Path(os.path.normpath(file)).is_relative_to(folder.resolve())}):
        raise QTargetError(
            f"the card of {source.called} names {listed(others)}, which lies outside of the folder: move it into the "
            "folder, or name the files in data.source.files={SPLIT: [FILE, …]}"
        )


def _check_names(source: Named, builder: Any) -> None:
    """Raise QTargetError for files that `datasets` takes for data though their names only hold an ending: a.jsonl.bak.

    Builders of other kinds, such as of plain text, read what they are made for.
    """
    if not {base.__name__ for base in type(builder).__mro__} & CHECKED:
        return
    read = {Path(file).name: _format(Path(file)) for held in builder.config.data_files.values() for file in held}
    if others := sorted(name for name, known in read.items() if known is None):
        raise QTargetError(
            f"{source.called} holds {listed(others)}, which would be read as data, too: move such copies out of the "
            f"folder, unpack archives, or rename data so that it ends in one of {listed([*TYPED, *FORMATS])}, or in "
            f"one of the latter and {listed(PACKED)}"
        )


def _check_left_out(source: Named, folder: Path, builder: Any) -> None:
    """Raise QTargetError for a folder without a card of which `datasets` reads one format, or some names, alone."""
    if _has_card(folder):
        return
    root = folder.resolve()
    read = {Path(file) for held in builder.config.data_files.values() for file in held}
    formats = {_format(file) for file in read}
    others = [file for file in _data_files(root) if file not in read]
    if left := sorted(str(file.relative_to(root)) for file in others if file.parent.resolve() != file.parent):
        raise QTargetError(
            f"{source.called}: {listed(left)} would not be read, since a link leads to their folder: name the files in "
            "data.source.files={SPLIT: [FILE, …]}, or put links to the files themselves into the folder"
        )
    if left := sorted(str(file.relative_to(root)) for file in others if _format(file) not in formats):
        raise QTargetError(
            f"{source.called} holds files of several formats, and {listed(left)} would not be read: name the files "
            "in data.source.files={SPLIT: [FILE, …]}, or put each format into a folder of its own"
        )
    if left := sorted(str(file.relative_to(root)) for file in others):
        names = sorted(str(file.relative_to(root)) for file in read)
        raise QTargetError(
            f"{source.called}: {listed(left)} would not be read, since {listed(names)} bear the names of splits: name "
            "all that belong to a split in data.source.files={SPLIT: [FILE, …]}, or the one file in data.source.path, "
            "or move those that are not to be read out of the folder"
        )


def _has_card(folder: Path) -> bool:
    """Whether a README begins with the settings of a data card, which say what is read; one of words alone doesn't."""
    readme = folder / "README.md"
    return readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").lstrip("\ufeff").startswith("---")


def _data_files(folder: Path) -> Iterator[Path]:
    """Files of data by their names, without those that are hidden, as `datasets` looks at them."""
    for file in files_below(folder):
        parts = file.relative_to(folder).parts
        hidden = any(part.startswith((".", "__")) for part in parts)
        if _format(file) and file.name not in SAID and not hidden:
            yield file


def _format(file: Path) -> str | None:
    """By the ending of its name; None: not of data."""
    return form(file) or TYPED.get(file.suffix.lower())


def _parts(
    source: Named, files: Mapping[str, tuple[Path, ...]], split: str, written: str, delimiter: str | None
) -> tuple[FilePart, ...]:
    """What a split is of: a split of the folder, or of `datasets`' own words such as "train[:100]+test"."""
    import datasets

    if split in files:
        return (FilePart(files[split]),)
    if source.streaming:
        raise QTargetError(
            f"a stream has no split {split!r}, which is a part of {source.called}: name one of {listed(files)} with "
            "data.source.train or .heldout, or set data.source.streaming=false"
        )
    lengths = {name: sum(1 for _ in FileRows((FilePart(held),), written, delimiter)) for name, held in files.items()}
    try:
        read = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise _not_loaded(source, split, error) from error
    return tuple(FilePart(files[part.splitname], part.from_ or 0, part.to) for part in read)


def _check_settings(source: Named, config: Any) -> None:
    """What the card says of its files must be what they are read by."""
    plain = type(config)(name="plain")
    others = [field.name for field in fields(config) if getattr(config, field.name) != getattr(plain, field.name)]
    if others := [name for name in others if name not in READ]:
        raise QTargetError(
            f"the card of {source.called} has its files read with {listed(others)}, which isn't heeded here: name "
            "plain files in data.source.files, such as Parquet"
        )


def _own_delimiter(config: Any) -> str | None:
    delimiter = getattr(config, "delimiter", None) or getattr(config, "sep", ",")
    return None if delimiter == "," else str(delimiter)


def _asked(source: Named, split: str, *, built: bool = False, **named: Any) -> Any:
    """What `datasets` gives: a table; or its builder, which has read nothing but names."""
    import datasets  # takes a second, and only this source needs it

    from qtarget.parallel import is_rank_zero  # torch comes in here

    if not is_rank_zero() or not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if built or not source.streaming:
            return datasets.load_dataset_builder(**named) if built else datasets.load_dataset(**named, split=split)
        return datasets.load_dataset(**named, split=split, streaming=True)._resolve_features()
    except Exception as error:  # hub, network, parsers and file systems each raise their own
        raise _not_loaded(source, split, error) from error


def _not_loaded(source: Named, split: str, error: Exception) -> QTargetError:
    reason = " ".join(f"{error} {error.__cause__ or ''}".split())[:400] or type(error).__name__
    if isinstance(error, ConnectionError):
        way = "give local copies, data.source.files={SPLIT: FILE.parquet}, or a folder as data.source.path"
    else:
        way = "check data.source.path, .name and .revision, and the splits in .train and .heldout"
    return QTargetError(f"can't load the split {split!r} of {source.called}: {reason}. Instead, {way}")


def _cache(files: Iterable[Path]) -> str:
    """A folder for what `datasets` makes of files as they are now.

    Its own names tell files apart by path and time of modification (5.2), and a file may be replaced under the same.
    """
    import datasets

    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.resolve()} {file_facts(file)}\n".encode(errors="surrogateescape"))
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"files-{digest.hexdigest()[:16]}")


def _checked_files(given: Mapping[Any, Any], split: str) -> list[Path]:
    if split not in given:
        raise QTargetError(
            f"the split {split!r} has no file; those given: {listed(given)}. Add it to data.source.files, name the "
            "splits there are, data.source.train and .heldout, null for none, or name a file of held-out rows, "
            "data.source.heldout=val.jsonl"
        )
    named = given[split] if isinstance(given[split], list | tuple) else [given[split]]
    files = [Path(file).expanduser() for file in named]
    for file in files:
        if not file.is_file():
            raise missing_data(str(file), "data.source.files", "{SPLIT: FILE}, or {SPLIT: [FILE, …]}")
    formats = {_format(file) for file in files}
    if any(file.suffix.lower() in PACKED and file.with_suffix("").suffix.lower() in TYPED for file in files):
        raise QTargetError(
            f"{listed([file.name for file in files])}: Parquet and Arrow files are packed inside already; unpack them, "
            "gunzip FILE"
        )
    if None in formats or len(formats) != 1:
        raise QTargetError(
            f"{listed([file.name for file in files])}: files of a split must all be of one of "
            f"{listed([*TYPED, *FORMATS])}"
        )
    return files


def check_not_guessed(source: Named, table: Table, columns: Sequence[str]) -> None:
    """Raise QTargetError where a CSV or JSON data set of the hub has columns that aren't the text they hold.

    columns: those that text is asked of, where there are such.
    `datasets` guesses types: 00501 → 501; in JSON, one number among texts makes numbers of all that look like one.
    """
    guessed = str(table.table.info.builder_name) if isinstance(table, Typed) else ""
    if not isinstance(table, Typed) or guessed not in BUILDERS.values():
        return
    for column in (column for column in columns if column in table.table.features):
        read_as = _type_name(table.table.features[column])
        if (guessed == "csv" and read_as not in ("string", "large_string")) or read_as == "Json":
            raise QTargetError(
                f"{source.called} is {guessed.upper()}, and its column {column!r} was read as {read_as}, which may "
                "not be what stands there (00501 → 501): download the files and name them in data.source.files, where "
                "text stays text"
            )


def _type_name(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)

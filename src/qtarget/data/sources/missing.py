"""What to say of a data file that isn't there, or isn't what its source reads."""

from __future__ import annotations

import difflib
from pathlib import Path

from qtarget.errors import QTargetError

SHOWN = 3
"""Files that a message names."""
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def missing_data(path: str, key: str, wanted: str) -> QTargetError:
    """key: the setting that names the path. wanted: what it takes, in words."""
    return QTargetError(
        f"no data at {path!r} (from {Path.cwd()}){_no_folder(path)}: set {key} to {wanted}{_nearest(path)}"
    )


def check_lines(path: str) -> None:
    """Raise QTargetError where `data.source.path` of data=jsonl is no file, is empty or is UTF-16."""
    file = Path(path)
    if file.is_dir():
        raise QTargetError(
            f"data.source.path={path} is a folder, and data=jsonl reads one file{_files_in(file)}: name a file of JSON "
            f"lines, or have the folder read: data=files data.source.path={path}"
        )
    if not file.is_file():
        raise missing_data(path, "data.source.path", "a file of JSON lines, FILE.jsonl")
    with file.open("rb") as lines:
        if lines.read(2) in UTF_16:
            raise QTargetError(f"{path} is UTF-16: save it as UTF-8")


def no_json(path: str) -> str:
    """What to do where a line of data=jsonl isn't JSON."""
    if Path(path).suffix.lower() in (".jsonl", ".ndjson"):
        return '. Every line must be one JSON object, such as {"prompt": "1+1=", "completion": "2"}'
    return f". data=jsonl reads JSON lines; CSV, JSON, Parquet and others: data=files data.source.path={path}"


def _no_folder(path: str) -> str:
    folder = Path(path).expanduser().parent
    return "" if folder.is_dir() else f", and no folder {folder}"


def _nearest(path: str) -> str:
    """A name in the same folder that may have been meant."""
    file = Path(path).expanduser()
    close = difflib.get_close_matches(file.name, [one.name for one in file.parent.glob("*")], n=1)
    return f". Did you mean {file.with_name(close[0])}?" if close else ""


def _files_in(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    shown = ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
    return f" (it holds {shown or 'no file'})"

"""Notebooks → docs/notebooks/NAME.md with their pictures, which code hosts show as they are.

python notebooks/render.py            executes every notebook and writes its page
python notebooks/render.py --strip    takes the outputs out of the notebooks: they are kept in the pages alone
python notebooks/render.py --strip F  out of these
"""

from __future__ import annotations

import argparse
import base64
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
PAGES = HERE.parent / "docs" / "notebooks"
COLOURS = 256
"""Of a picture in a page: plots need no more, and git keeps every version."""


COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")


def notebooks() -> list[Path]:
    return sorted(HERE.glob("*.ipynb"))


def strip(path: Path) -> bool:
    """Take out what running a notebook has left in it; says whether there was anything."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    text = nbformat.writes(notebook, indent=1) + "\n"
    changed = text != path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    return changed


def render(path: Path) -> Path:
    """Execute a notebook, and write its page. Raises nbclient's CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    page = PAGES / f"{path.stem}.md"
    PAGES.mkdir(parents=True, exist_ok=True)
    for old in PAGES.glob(f"{path.stem}_*.png"):
        old.unlink()
    parts = [part for number, cell in enumerate(notebook.cells) for part in _parts(cell, path.stem, number)]
    head = f"<!-- made from notebooks/{path.name} by `make notebooks` -->"
    page.write_text("\n\n".join([head, *parts]) + "\n", encoding="utf-8")
    return page


def _parts(cell: Any, name: str, number: int) -> list[str]:
    if cell.cell_type == "markdown":
        return [cell.source]
    shown = [_shown(output, f"{name}_{number}.png") for output in cell.outputs]
    return [code(cell.source), *_joined(shown)]


def _joined(shown: Iterable[str]) -> list[str]:
    """Pictures, and texts that follow each other as one."""
    parts: list[str] = []
    for part in filter(None, shown):
        if parts and not _is_picture(part) and not _is_picture(parts[-1]):
            parts[-1] += part
        else:
            parts.append(part)
    return [part if _is_picture(part) else _fenced(part) for part in parts]


def _is_picture(part: str) -> bool:
    return part.startswith("![]")


def code(source: str) -> str:
    """A code cell as a page shows it."""
    return f"```python\n{source}\n```"


def _shown(output: Any, picture: str) -> str:
    """An output: the link to a picture, or text; what went to standard error, progress and warnings, is left out."""
    if output.output_type == "stream":
        return str(output.text) if output.name == "stdout" else ""
    if "image/png" in output.data:
        _save(base64.b64decode(output.data["image/png"]), PAGES / picture)
        return f"![]({picture})"
    return str(output.data.get("text/plain", ""))


def _fenced(text: str) -> str:
    lines = [line.rstrip() for line in COLOUR_CODE.sub("", text).strip("\n").splitlines()]
    return "\n".join(["```text", *lines, "```"])


def _save(png: bytes, path: Path) -> None:
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strip", action="store_true", help="take outputs out instead of making pages")
    parser.add_argument("files", nargs="*", type=Path, help="of these notebooks (default: all)")
    options = parser.parse_args()
    for path in options.files or notebooks():
        if not options.strip:
            print(render(path))
        elif strip(path):
            print(f"outputs taken out of {path}")


if __name__ == "__main__":
    main()

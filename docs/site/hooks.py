"""What mkdocs does besides: CONTRIBUTING.md is a page too, and files outside docs/ are named, not linked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!CONTRIBUTING)[^)\s]+\)")


def on_files(files: Files, config: Any) -> Files:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "contributing.md", content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    up = "../" * page.file.src_uri.count("/")
    inside = re.sub(r"\((?:\.\./)+CONTRIBUTING\.md", f"({up}contributing.md", markdown)
    return inside if up else OUTSIDE.sub(r"\1", inside)

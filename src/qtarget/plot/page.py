"""Self-contained pages: a template, the style and script of this folder, and plotly.js inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

SHARED = Path(__file__).parent


def render(template: Path, values: dict[str, Any]) -> str:
    """The page as text. Every value is escaped; only plotly.js itself goes in as it is."""
    from plotly.offline import get_plotlyjs  # 5 MB of script, read when a page is made

    environment = Environment(
        loader=FileSystemLoader([template.parent, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values, plotly_js=Markup(get_plotlyjs()))

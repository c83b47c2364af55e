"""Debian's chromium, which opens a page as a reader would: at a width, without a network.

python tests/browsing.py REPORT.html PICTURE.png        the first section of a report, as the guide shows it
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
CHROMIUM = shutil.which("chromium")
DRAWN = """() => [...document.querySelectorAll(".plot")].every((plot) => plot.querySelector("svg"))"""


@contextmanager
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


@contextmanager
def reading(opened: Browser, page: Path, width: str) -> Iterator[Page]:
    """The page with all its plots. In the end it must have said nothing on the console and asked for no other file."""
    across, down = WIDTHS[width]
    context = opened.new_context(viewport={"width": across, "height": down}, offline=True, color_scheme="light")
    shown = context.new_page()
    said: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: said.append(request.url) if request.url != page.as_uri() else None)
    shown.goto(page.as_uri())
    shown.wait_for_function(DRAWN)
    yield shown
    context.close()
    assert said == []


def main() -> None:
    page, picture = map(Path, sys.argv[1:])
    with browser() as opened, reading(opened, page.resolve(), "desktop") as shown:
        shown.locator("main section").first.screenshot(path=picture)


if __name__ == "__main__":
    main()

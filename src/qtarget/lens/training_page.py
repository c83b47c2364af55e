"""training.html and training.png: a run's tokens from step to step, with a slider, and as lines below each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtarget.lens import over_training
from qtarget.lens.over_training import OverTraining, as_rows, page_data
from qtarget.lens.token_table import CLIP, DEEPEST, DOWN, UP, Demonstrations, draw_tokens
from qtarget.plot.page import render

TEMPLATE = Path(__file__).with_name("training.html.j2")
PICTURED = 8  # steps in the picture
QUANTITIES = {
    "trust": ("trust", "how hard the token is pulled up relative to plain SFT, whose trust is 1"),
    "p": ("p(y)", "the policy's probability of the token"),
    "q": ("Q(y)", "the target's probability of it, p − ∂L/∂z"),
    "pull": ("Q(y) − p(y)", "the gradient on its logit: above 0 the token is pulled up, below 0 pushed down"),
    "reliance": ("reliance γ", "the share of the target that stays on the observed token"),
    "weight": ("step size w", "the factor on the token's whole gradient"),
}
"""What tokens are coloured by: key → name, and what it is."""
ENDS = {"trust": CLIP}
"""Where the scale of a quantity ends, on both sides; others end at ±1, or as far as values go beyond."""


def write_training(shown: OverTraining, path: Path) -> None:
    """The page at `path`."""
    path.write_text(render(TEMPLATE, template_values(shown)), encoding="utf-8", newline="\n")


def template_values(shown: OverTraining) -> dict[str, Any]:
    """What the template shows."""
    data = page_data(shown)
    look = {"up": UP, "down": DOWN, "deepest": DEEPEST, "ends": _ends(data), "colour": shown.mark.colour}
    return {"shown": shown, "data": {**data, **look}, "quantities": QUANTITIES, "record": over_training}


def _ends(data: dict[str, Any]) -> dict[str, float]:
    tokens = [token for row in data["rows"] for token in row]
    plain = [key for key in QUANTITIES if key != "pull"]
    reach = {key: max((abs(value or 0) for token in tokens for value in token[key]), default=1.0) for key in plain}
    return {key: ENDS.get(key, round(max(1.0, reach.get(key, 1.0)), 2)) for key in QUANTITIES}


def draw_training(shown: OverTraining, path: Path) -> None:
    """Every row, and under its prompt a line of its tokens for some of the steps, coloured by trust."""
    draw_tokens(Demonstrations(shown.run, as_rows(shown, PICTURED)), path)

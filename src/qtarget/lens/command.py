"""`qtarget lens`: what designs teach, as curves in a small world and token by token on demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtarget.compare.command import near
from qtarget.config.composing import about, options
from qtarget.config.parsers import LENS as USAGE
from qtarget.config.part_checks import checked_design
from qtarget.errors import QTargetError
from qtarget.run.show import split_target, train_command

if TYPE_CHECKING:
    from qtarget.lens.curves import Curve, World
    from qtarget.lens.token_table import Demonstrations
    from qtarget.plot.looks import Mark

OUT, ROWS = "outputs/lens", 4
FEATURED = ("sft", "label_smoothing", "dft", "one_minus_prior", "kd", "target_sft")
"""Where every design is drawn these come first, and their curves are on to begin with."""


@dataclass(frozen=True)
class Request:
    """What was asked for: designs (none: all), their changes, where to write, and the demonstrations to read."""

    names: tuple[str, ...]
    changes: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    out: Path = Path(OUT)
    checkpoint: str | None = None
    rows: int = ROWS


def lens(arguments: Sequence[str]) -> int:
    """Write lens.html and the pictures, and say where they are."""
    from qtarget.lens.curves import World

    request, world = read_request(arguments), World.default()
    curves = traced(request, world)
    demonstrations = None
    if request.checkpoint is not None:
        from qtarget.lens.reading import read_demonstrations  # torch models and transformers come in here

        demonstrations = read_demonstrations(
            request.checkpoint,
            {curve.name: curve.mark for curve in curves},
            changes=request.changes,
            overrides=request.overrides,
            rows=request.rows,
            lenient=not request.names,
        )
    for kind, path in write_files(request, curves, world, demonstrations):
        print(f"{kind:<9}{near(path)}")
    print(f"next     {_next_command(request)}")
    return 0


def read_request(arguments: Sequence[str]) -> Request:
    """Raises QTargetError for what lens doesn't take."""
    names, changes, others = split_target(arguments)
    pairs = [(argument, *argument.partition("=")[::2]) for argument in others]
    own = {key: value for _, key, value in pairs if key in ("out", "checkpoint", "rows")}
    overrides = tuple(argument for argument, key, _ in pairs if key not in own)
    if any("=" not in argument for argument in others) or (overrides and "checkpoint" not in own):
        wrong = next((argument for argument in others if "=" not in argument), *overrides[:1])
        raise QTargetError(f"{USAGE}; got {wrong!r}")
    if empty := [key for key, value in own.items() if not value]:
        raise QTargetError(f"{empty[0]}= needs a value: {USAGE}")
    return Request(
        tuple(dict.fromkeys(filter(None, names))),
        tuple(changes),
        overrides,
        Path(own.get("out", OUT)),
        own.get("checkpoint"),
        _rows(own.get("rows", str(ROWS))),
    )


def _rows(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise QTargetError(f"rows must be a whole number of at least 1, got {text!r}")
    return int(text)


def traced(request: Request, world: World) -> tuple[Curve, ...]:
    """The curve of each design asked for."""
    from qtarget.lens.curves import marks

    names = request.names or every_name()
    designs = [checked_design(name, request.changes) for name in names]
    return tuple(_traced(design, mark, world) for design, mark in zip(designs, marks(names), strict=True))


def _traced(design: Any, mark: Mark, world: World) -> Curve:
    from qtarget.lens.curves import trace

    try:
        return trace(design, mark, about(mark.label)["formula"], world)
    except QTargetError as error:
        raise QTargetError(f"{mark.label}: {error}") from error


def every_name() -> tuple[str, ...]:
    """All designs, those of the demonstration first."""
    known = options("target")
    return (*(name for name in FEATURED if name in known), *(name for name in known if name not in FEATURED))


def write_files(
    request: Request, curves: Sequence[Curve], world: World, demonstrations: Demonstrations | None
) -> Iterator[tuple[str, Path]]:
    """What was written: (kind, path)."""
    from qtarget.lens.page import write_lens
    from qtarget.lens.picture import draw_design, draw_lens
    from qtarget.lens.token_table import draw_tokens

    folder = request.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QTargetError(f"can't write to {folder}: {error}. Set out=FOLDER to one you can write") from error
    page = folder / "lens.html"
    write_lens(curves, world, page, changes=request.changes, shown=FEATURED, demonstrations=demonstrations)
    yield "page", page
    draw_lens(curves, world, folder / "lens.png")
    yield "picture", folder / "lens.png"
    if demonstrations is not None and demonstrations.rows:
        draw_tokens(demonstrations, folder / "tokens.png")
        yield "picture", folder / "tokens.png"
    for curve in curves:
        draw_design(curve, world, folder / f"lens_{curve.name}.png")
        yield "picture", folder / f"lens_{curve.name}.png"


def _next_command(request: Request) -> str:
    """A design that has been looked at is trained; of all designs, a few are looked at closely."""
    if not request.names:
        return f"qtarget lens target={','.join(FEATURED[:4])}"
    return train_command(request.names, request.changes)

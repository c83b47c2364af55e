"""`qtarget lens`: what designs teach, as curves in a small world and token by token on demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtarget.compare.command import near
from qtarget.config.composing import about, options
from qtarget.config.parsers import LENS as USAGE
from qtarget.config.part_checks import checked_design
from qtarget.errors import QTargetError
from qtarget.lens.chosen import Against, designed, split_against, split_run
from qtarget.run.show import split_target, train_command

if TYPE_CHECKING:
    from qtarget.lens.against import CurveDifference
    from qtarget.lens.curves import Curve, World
    from qtarget.lens.token_table import Demonstrations
    from qtarget.plot.looks import Mark

OUT, ROWS = "outputs/lens", 4
FEATURED = ("sft", "label_smoothing", "dft", "one_minus_prior", "kd", "target_sft")
"""Where every design is drawn these come first, and their curves are on to begin with."""


@dataclass(frozen=True)
class Request:
    """What was asked for: designs (none: all), their changes, where to write, and the demonstrations to read.

    against: the design that the others are set against.
    """

    names: tuple[str, ...]
    changes: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    out: Path = Path(OUT)
    checkpoint: str | None = None
    rows: int = ROWS
    against: Against | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Of every design that is drawn, that which the others are set against the last."""
        labels = self.names or every_name()
        return labels if self.against is None else tuple(dict.fromkeys((*labels, self.against.label)))


def lens(arguments: Sequence[str]) -> int:
    """Write the page and the pictures, and say where they are: of designs, or of a run's course over training."""
    run, words = split_run(arguments)
    return lens_of_run(run, words) if run else lens_of_designs(words)


def lens_of_run(run: Path, arguments: Sequence[str]) -> int:
    """training.html and training.png, from what the run has recorded; no model is loaded."""
    from qtarget.lens.over_training import read_run
    from qtarget.lens.training_page import draw_training, write_training

    keys = [argument.partition("=") for argument in arguments]
    if wrong := next((key for key, _, value in keys if key != "out" or not value), None):
        raise QTargetError(
            f"lens {run} shows what that run has recorded of its own design, and takes out=FOLDER alone; got "
            f"{wrong!r}. With other designs its model is read by checkpoint={run}"
        )
    shown, folder = read_run(run), _made(Path(keys[-1][2] if keys else OUT))
    write_training(shown, folder / "training.html")
    draw_training(shown, folder / "training.png")
    print(f"page     {near(folder / 'training.html')}\npicture  {near(folder / 'training.png')}")
    print(f"next     qtarget lens target={shown.design} checkpoint={run}")
    return 0


def lens_of_designs(arguments: Sequence[str]) -> int:
    """lens.html and its pictures."""
    from qtarget.lens.against import stops_in_words
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
            against=request.against,
        )
    for kind, path in write_files(request, curves, world, demonstrations):
        print(f"{kind:<9}{near(path)}")
    for difference in _differences(request, curves) if request.names else ():
        print(f"{'against':<9}{difference.name}: {stops_in_words(difference)}")
    print(f"next     {_next_command(request)}")
    return 0


def _differences(request: Request, curves: Sequence[Curve]) -> tuple[CurveDifference, ...]:
    """Every design but that which they are set against, beside it."""
    from qtarget.lens.against import CurveDifference

    if request.against is None:
        return ()
    (other,) = (curve for curve in curves if curve.name == request.against.label)
    return tuple(CurveDifference(curve, other) for curve in curves if curve is not other)


def read_request(arguments: Sequence[str]) -> Request:
    """Raises QTargetError for what lens doesn't take."""
    words, against = split_against(arguments)
    names, changes, others = split_target(words)
    pairs = [(argument, *argument.partition("=")[::2]) for argument in others]
    own = {key: value for _, key, value in pairs if key in ("out", "checkpoint", "rows")}
    overrides = tuple(argument for argument, key, _ in pairs if key not in own)
    if any("=" not in argument for argument in others) or (overrides and "checkpoint" not in own):
        wrong = next((argument for argument in others if "=" not in argument), *overrides[:1])
        raise QTargetError(f"{USAGE}; got {wrong!r}")
    if empty := [key for key, value in own.items() if not value]:
        raise QTargetError(f"{empty[0]}= needs a value: {USAGE}")
    request = Request(
        tuple(dict.fromkeys(filter(None, names))),
        tuple(changes),
        overrides,
        Path(own.get("out", OUT)),
        own.get("checkpoint"),
        _rows(own.get("rows", str(ROWS))),
    )
    return replace(request, against=against and against.beside(request.names or every_name(), request.changes))


def _rows(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise QTargetError(f"rows must be a whole number of at least 1, got {text!r}")
    return int(text)


def traced(request: Request, world: World) -> tuple[Curve, ...]:
    """The curve of each design asked for."""
    from qtarget.lens.curves import marks

    chosen = [designed(label, request.changes, request.against) for label in request.labels]
    designs = [checked_design(name, changes) for name, changes in chosen]
    triples = zip(designs, chosen, marks(request.labels), strict=True)
    return tuple(_traced(design, name, mark, world) for design, (name, _), mark in triples)


def _traced(design: Any, name: str, mark: Mark, world: World) -> Curve:
    from qtarget.lens.curves import trace

    try:
        return trace(design, mark, about(name)["formula"], world)
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
    from qtarget.lens.against import draw_differences
    from qtarget.lens.page import write_lens
    from qtarget.lens.picture import draw_design, draw_lens
    from qtarget.lens.token_table import draw_tokens

    folder = _made(request.out)
    page, differences = folder / "lens.html", _differences(request, curves)
    shown = (*FEATURED, *(difference.other.name for difference in differences[:1]))
    write_lens(
        curves,
        world,
        page,
        changes=request.changes,
        shown=shown,
        demonstrations=demonstrations,
        differences=differences,
    )
    yield "page", page
    draw_lens(curves, world, folder / "lens.png")
    yield "picture", folder / "lens.png"
    if demonstrations is not None and demonstrations.rows:
        draw_tokens(demonstrations, folder / "tokens.png")
        yield "picture", folder / "tokens.png"
    if differences:
        draw_differences(differences, folder / "differences.png")
        yield "picture", folder / "differences.png"
    for curve in curves[: len(request.names or every_name())]:
        draw_design(curve, world, folder / f"lens_{curve.name}.png")
        yield "picture", folder / f"lens_{curve.name}.png"


def _made(folder: Path) -> Path:
    """Raises QTargetError for a folder that can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QTargetError(f"can't write to {folder}: {error}. Set out=FOLDER to one you can write") from error
    return folder


def _next_command(request: Request) -> str:
    """A design that has been looked at is trained; of all designs, a few are looked at closely."""
    if not request.names:
        return f"qtarget lens target={','.join(FEATURED[:4])}"
    also = request.against.name if request.against and not (request.against.changes or request.changes) else ""
    return train_command(tuple(dict.fromkeys(filter(None, (*request.names, also)))), request.changes)

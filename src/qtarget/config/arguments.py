"""The arguments of `qtarget train` in any order, and parsers whose complaints are QTargetErrors."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from qtarget.errors import QTargetError

CFG_CHOICES = ("job", "hydra", "all")
INFO_CHOICES = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--help", "-h"), {"action": "store_true"}),
    (("--hydra-help",), {"action": "store_true"}),
    (("--version",), {"action": "store_true"}),
    (("--cfg", "-c"), {"choices": CFG_CHOICES}),
    (("--resolve",), {"action": "store_true"}),
    (("--package", "-p"), {}),
    (("--run", "-r"), {"action": "store_true"}),
    (("--multirun", "-m"), {"action": "store_true"}),
    (("--config-path", "-cp"), {}),
    (("--config-name", "-cn"), {}),
    (("--config-dir", "-cd"), {}),
    (("--info", "-i"), {"nargs": "?", "const": "all", "choices": INFO_CHOICES}),
)
"""Hydra's, by their names, but for two: see REFUSED."""
REFUSED = {
    "--shell-completion": 'completion is installed by: eval "$(qtarget completion bash)", or zsh, fish',
    "-sc": 'completion is installed by: eval "$(qtarget completion bash)", or zsh, fish',
    "--experimental-rerun": "it reads a pickle, which may run any code: give the run's overrides again, which its "
    "result.json lists",
}
MODES = ("run", "multirun", "cfg", "info")


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are QTargetErrors that name what is allowed."""

    def __init__(self, **settings: Any) -> None:
        self.names: list[str] = []
        self.values: dict[str, Iterable[str]] = {}  # of options that take one of a few
        super().__init__(**settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        action = super().add_argument(*names, **settings)
        self.names += action.option_strings
        self.values |= dict.fromkeys(action.option_strings, action.choices or ())
        return action

    def error(self, message: str) -> NoReturn:
        from qtarget.config.composing import nearest

        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            message = unknown[0] + nearest(unknown[1].partition("=")[0], self.names)
        name = self.prog.removeprefix("qtarget ")
        raise QTargetError(f"{name}: {message}. `{self.prog} --help` shows what it takes")


@dataclass(frozen=True)
class Arguments:
    """overrides: Hydra's key=value; options: all else, each with its value, as Hydra takes them."""

    overrides: tuple[str, ...]
    options: tuple[str, ...]
    runs: bool
    multirun: bool = False
    config_dir: str | None = None
    package: str | None = None

    def with_multirun(self, multirun: bool) -> Arguments:
        """The same, said on the command line: Hydra 1.4 takes hydra.mode=MULTIRUN of an experiment for a mistake."""
        options = (*self.options, "--multirun") if multirun and not self.multirun else self.options
        return replace(self, options=options, multirun=multirun)


def train_parser() -> Parser:
    parser = Parser(prog="qtarget train", add_help=False)
    parser.add_argument("overrides", nargs="*")
    for names, settings in OPTIONS:
        parser.add_argument(*names, **settings)
    return parser


def parse_train_arguments(words: Sequence[str]) -> Arguments:
    """The words behind `qtarget train`. Raises QTargetError for what it doesn't take.

    argparse, which Hydra 1.3 and 1.4 read their arguments with, takes overrides in one piece only:
    `target=sft --cfg job model=tiny` fails there, and `--info target=sft` takes an override for the option's value.
    """
    for word in words:
        if (name := word.partition("=")[0]) in REFUSED:
            raise QTargetError(f"train has no {name}: {REFUSED[name]}")
    options = train_parser().parse_intermixed_args(_with_info(words))
    if not (options.help or options.hydra_help or options.version):
        _check_modes(options)
    hydras: list[str] = []
    for (name, *_), _settings in OPTIONS:
        value = getattr(options, name.removeprefix("--").replace("-", "_"))
        hydras += [name] if value is True else [] if value in (None, False) else [name, value]
    shows = options.help or options.hydra_help or options.version or options.cfg or options.info
    return Arguments(
        tuple(options.overrides), tuple(hydras), not shows, options.multirun, options.config_dir, options.package
    )


def _with_info(words: Sequence[str]) -> list[str]:
    """--info=all for an --info that is followed by something else than one of its values."""
    following = [*words[1:], ""]
    return [
        "--info=all" if word in ("--info", "-i") and after not in INFO_CHOICES else word
        for word, after in zip(words, following, strict=True)
    ]


def _check_modes(options: argparse.Namespace) -> None:
    chosen = [f"--{mode}" for mode in MODES if getattr(options, mode)]
    if len(chosen) > 1:
        raise QTargetError(f"train does one thing at a time: of {' and '.join(chosen)} leave one")
    if not options.cfg and (options.package is not None or options.resolve):
        name = "--resolve" if options.resolve else "--package"
        raise QTargetError(f"{name} says how --cfg shows the configuration: add --cfg job")
    if options.cfg == "hydra" and options.resolve:
        raise QTargetError("Hydra's settings refer to the job's: write --cfg all --resolve, with --package hydra")

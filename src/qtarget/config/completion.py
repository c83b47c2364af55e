"""`qtarget completion SHELL`: the script that a shell evaluates, and the candidates that the script asks for.

The scripts ask `qtarget completion SHELL --line LINE`, LINE up to the cursor, and get a candidate a line. One that is
whole ends with a space; one that goes on (`target=`, `optim.`) doesn't. bash completes what stands behind the last of
its COMP_WORDBREAKS alone, which hold = and : by default: it gets the rest of each candidate.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from qtarget.config.arguments import Parser
from qtarget.config.parsers import COMMANDS
from qtarget.config.shipped_sweeps import shipped_sweeps
from qtarget.errors import QTargetError

BASH = r"""# qtarget: eval "$(qtarget completion bash)" in ~/.bashrc
_qtarget_complete() {
    local candidate
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("$candidate")
    done < <("${COMP_WORDS[0]/#\~/$HOME}" completion bash --line "${COMP_LINE:0:COMP_POINT}" \
        --breaks "$COMP_WORDBREAKS" 2>/dev/null)
}
complete -o nospace -o default -F _qtarget_complete qtarget
"""
ZSH = r"""# qtarget: eval "$(qtarget completion zsh)" in ~/.zshrc
if ! whence compdef >/dev/null; then autoload -Uz compinit && compinit; fi
_qtarget_complete() {
    local -a whole begun
    local candidate
    while IFS= read -r candidate; do
        if [[ $candidate == *' ' ]]; then whole+=("${candidate% }"); else begun+=("$candidate"); fi
    done < <("${words[1]/#\~/$HOME}" completion zsh --line "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)
    (( $#whole + $#begun )) || { _files; return }
    (( $#whole )) && compadd -- $whole
    (( $#begun )) && compadd -S '' -- $begun
}
compdef _qtarget_complete qtarget
"""
FISH = r"""# qtarget: qtarget completion fish | source in ~/.config/fish/config.fish
function __qtarget_complete
    set -l words (commandline -opc)
    $words[1] completion fish --line (commandline -cp | string collect) 2>/dev/null
end
complete -c qtarget -f -a '(__qtarget_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
KEYS: dict[str, dict[str, tuple[str, ...] | None]] = {
    "cache": {"detail": ("label", "topk", "hidden"), "role": ("prior", "teacher")},
    "evaluate": {"checkpoint": None},
    "lens": {"out": None, "checkpoint": None, "rows": ()},
}
"""Command → the keys of its own and their values; None: a path."""
CONFIGS = {
    "train": "train",
    "data": "train",
    "cache": "train",
    "evaluate": "train",
    "lens": "train",
    "sweep": "train",
    "show": "design",
}
MODEL_ENDS = ("/", ".gguf")
PATHS = ("sweep", "compare", "power", "export", "clean", "lens")
"""Commands whose words may be files."""


def completion(arguments: Sequence[str]) -> int:
    """Print a script, or what could stand at the end of a line."""
    options = completion_parser().parse_args(arguments)
    if options.shell not in SCRIPTS:
        from qtarget.config.composing import nearest

        raise QTargetError(f"completion of {options.shell!r} is unknown{nearest(options.shell, SCRIPTS)}")
    if options.line is None:
        print(SCRIPTS[options.shell], end="")
        return 0
    for candidate in completions(options.line, options.breaks):
        print(candidate.rstrip() if options.shell == "fish" else candidate)
    return 0


def completion_parser() -> Parser:
    parser = Parser(prog="qtarget completion")
    parser.add_argument("shell")
    parser.add_argument("--line", help=argparse.SUPPRESS)
    parser.add_argument("--breaks", default="", help=argparse.SUPPRESS)
    return parser


def completions(line: str, breaks: str = "") -> list[str]:
    """The candidates for the last word of a line, without what the shell keeps of it. breaks: bash's word breaks."""
    *before, word = _words(line)
    kept = re.match(f"(.*[{re.escape(breaks)}])?", word, re.DOTALL) if breaks else None
    start = len(kept[0]) if kept else 0
    return [text[start:] for text in sorted(set(_candidates(before[1:], word))) if text.startswith(word)]


def _words(line: str) -> list[str]:
    """A line's words, the last of which is empty behind a space; quotes that aren't closed are left alone."""
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    return [*words, ""] if not line or line[-1].isspace() else words


def _candidates(before: Sequence[str], word: str) -> Iterable[str]:
    if not before:
        return [f"{name} " for name in (*COMMANDS, "help", "--help", "--version")]
    name, *rest = before
    if name == "help":
        return [f"{command} " for command in COMMANDS]
    if name not in COMMANDS:
        return []
    return _option_values(name, rest) or [*_options(name, word), *_words_of(name, rest, word)]


def _option_values(name: str, rest: Sequence[str]) -> list[str]:
    """What the option before takes, where it takes one of a few."""
    from qtarget.config.parsers import parser_of

    parser = parser_of(name)
    return [f"{value} " for value in parser.values.get(rest[-1], ())] if parser and rest else []


def _options(name: str, word: str) -> list[str]:
    from qtarget.config.parsers import parser_of

    parser = parser_of(name)
    names = parser.names if parser else ()
    return [f"{option} " for option in (*names, "-h", "--help")] if word.startswith("-") else []


def _words_of(name: str, rest: Sequence[str], word: str) -> list[str]:
    """Files, keys of the command's own, and Hydra's."""
    key, equals, value = word.partition("=")
    own_keys = KEYS.get(name, {})
    if equals and key in own_keys:
        values = own_keys[key]
        texts = _paths(value) if values is None else [f"{legal} " for legal in values]
        return [f"{key}={text}" for text in texts]
    candidates = [] if equals else [f"{own}=" for own in own_keys]
    candidates += _paths(word) if name in PATHS and not equals else []
    candidates += [f"{sweep} " for sweep in shipped_sweeps()] if name == "sweep" and not equals else []
    candidates += [f"{shell} " for shell in SCRIPTS] if name == "completion" and not rest else []
    if name in CONFIGS and not word.startswith("-"):
        from qtarget.config.keys import keys

        overrides = [before for before in rest if "=" in before and before.partition("=")[0] not in own_keys]
        candidates += [*keys(CONFIGS[name], overrides, word), *(_model_folders(value) if key == "model" else ())]
    return candidates


def _model_folders(value: str) -> list[str]:
    """model=FOLDER and model=FILE.gguf, once the name is begun; of several the last."""
    before, comma, last = value.rpartition(",")
    return [f"model={before}{comma}{path}" for path in _paths(last) if last and path.rstrip().endswith(MODEL_ENDS)]


def _paths(beginning: str) -> list[str]:
    """Files and folders that begin so, of names that need no quotes."""
    folder, name = re.fullmatch(r"(.*/)?([^/]*)", beginning, re.DOTALL).groups()  # type: ignore[union-attr]
    try:
        paths = sorted(Path(folder or ".").expanduser().iterdir())
    except OSError:
        return []
    plain = [path for path in paths if path.name == shlex.quote(path.name) and path.name.startswith(name)]
    shown = [path for path in plain if name or not path.name.startswith(".")]
    return [f"{folder or ''}{path.name}" + ("/" if path.is_dir() else " ") for path in shown]

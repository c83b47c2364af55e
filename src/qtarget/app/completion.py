"""`qtarget completion SHELL`: what a shell needs to complete the command, and the completions themselves."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from qtarget.errors import QTargetError

USAGE = """completion takes a shell: bash, zsh or fish. To have commands, groups, options and keys completed:
  eval "$(qtarget completion bash)"          in ~/.bashrc
  eval "$(qtarget completion zsh)"           in ~/.zshrc, behind compinit
  qtarget completion fish | source           in ~/.config/fish/config.fish"""

BASH = """_qtarget_completion() {
  local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}" word breaks found place
  word="${line##* }"
  COMPREPLY=($(qtarget completion --line "$line" 2>/dev/null))
  # bash replaces what stands behind its last word break, and = @ : are among them
  breaks="${COMP_WORDBREAKS//[^=@:]/}"
  [[ -n $breaks ]] && found="${word%"${word##*[$breaks]}"}"
  for place in "${!COMPREPLY[@]}"; do
    [[ ${COMPREPLY[place]} == *[=./] ]] || COMPREPLY[place]+=' '
    COMPREPLY[place]="${COMPREPLY[place]#"$found"}"
  done
}
complete -o nospace -o default -F _qtarget_completion qtarget
"""
ZSH = """_qtarget_completion() {
  local -a found whole open
  found=(${(f)"$(qtarget completion --line "${(j: :)words[1,CURRENT]}" 2>/dev/null)"})
  whole=(${found:#*[=./]})
  open=(${(M)found:#*[=./]})
  (( $#found )) || { _files; return }
  (( $#whole )) && compadd -Q -- $whole
  (( $#open )) && compadd -Q -S '' -- $open
  return 0
}
compdef _qtarget_completion qtarget
"""
FISH = """function __qtarget_completion
    qtarget completion --line (commandline --cut-at-cursor | string collect) 2>/dev/null
end
complete --command qtarget --no-files --arguments '(__qtarget_completion)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
HYDRA = ("--cfg", "--config-dir", "--help", "--hydra-help", "--info", "--multirun", "--package", "--resolve", "-m")
OPTIONS = {
    "train": HYDRA,
    "sweep": ("--count", "--gpus", "--help", "--retry", "--seed", "--slots"),
    "compare": ("--against", "--best-of", "--by", "--format", "--group-by", "--help", "--metric", "--out", "--paired"),
    "agents": ("--agents", "--count", "--gpus", "--help", "--pause", "--restarts"),
    "dashboard": ("--help", "--name", "--project"),
    "completion": tuple(SCRIPTS),
}
"""What a command takes beside overrides; every other command takes --help."""
OWN = {
    "cache": ("detail=", "role="),
    "evaluate": ("checkpoint=",),
    "lens": ("checkpoint=", "out=", "rows="),
}
DESIGNS = ("show", "lens")
"""Commands that take several designs at once, and of the configuration `target` alone."""
TRAINS = ("train", "cache", "evaluate", "lens", "sweep")


def completion(arguments: Sequence[str]) -> int:
    """Print the script of a shell; with --line LINE what can stand at the end of a command line, one a line."""
    if arguments[:1] == ["--line"] and len(arguments) == 2:
        print("\n".join(candidates(arguments[1])))
        return 0
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        raise QTargetError(USAGE)
    print(SCRIPTS[arguments[0]], end="")
    return 0


def candidates(line: str) -> list[str]:
    """What the last word of a command line can become, whole words, sorted."""
    from qtarget.app.cli import COMMANDS

    words = _words(line)[1:] or [""]
    *before, word = words
    if not before:
        return [name for name in sorted({*COMMANDS, "--help", "--version"}) if name.startswith(word)]
    command, *before = before
    if command not in COMMANDS:
        return []
    found = [option for option in OPTIONS.get(command, ("--help",)) if option.startswith(word)] if word else []
    found += [key for key in OWN.get(command, ()) if key.startswith(word)]
    if not word.startswith("-") and command in {*TRAINS, *DESIGNS}:
        found += _overrides(command, before, word)
    return sorted({*found, *(OPTIONS[command] if command == "completion" and not word else ())})


def _words(line: str) -> list[str]:
    """As the shell reads it; the last is empty where a new one begins."""
    try:
        words = shlex.split(line)
    except ValueError:  # within a quotation
        return line.split(" ")
    return [*words, ""] if line.endswith(" ") else words


def _overrides(command: str, before: Sequence[str], word: str) -> list[str]:
    """Of a list, target=sft,d…, the last value is completed."""
    key, equals, values = word.partition("=")
    done, comma, last = values.rpartition(",")
    group, at, _ = key.partition("@")  # GROUP@PACKAGE=OPTION: Hydra completes the option of GROUP alone
    found = _query([one for one in before if "=" in one and "," not in one], f"{group}{equals}{last}")
    if at:
        return [f"{key}={done}{comma}{one.partition('=')[2]}" for one in found] if equals else []
    if command in DESIGNS and command not in TRAINS:
        found = [one for one in found if one.startswith("target")]
    return [one.replace("=", f"={done}{comma}", 1) for one in found] if comma else found


def _query(before: Sequence[str], word: str) -> list[str]:
    """Hydra's own completion of overrides, on our configurations and the user's."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin
    from omegaconf.errors import OmegaConfBaseException

    from qtarget.app.configs import composing, search_path_override

    line = " ".join([*search_path_override(), *before, word])
    with composing():
        plugin = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())
        try:
            found = [str(one) for one in plugin._query("train", line or " ")]
        except (HydraException, OmegaConfBaseException):  # what stands before is wrong already
            return []
    shown = [one for one in found if word.startswith("hydra") or not one.startswith("hydra")]
    return [named for one in shown for named in _named(one, word)]


def _named(found: str, word: str) -> list[str]:
    """A group that has options, and groups of its own, is named without what may follow it."""
    open_ended = "=" not in word and not found.endswith(("=", ".", "/"))
    return [f"{found}=", f"{found}/"] if open_ended else [found]

"""The `qtarget` command. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

from qtarget.config.parsers import COMMANDS, PARSERS, TEXTS, USAGE

HELP = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a job failed, 2 the input has to be mended, 130 and 143 interrupted."""
    from qtarget.signals import exit_with_parent

    exit_with_parent()
    sys.path.insert(0, os.getcwd())  # parts of your own are imported from the folder you work in
    words = list(sys.argv[1:] if arguments is None else arguments)
    code = run(words)
    _end_agents_run_by_signal(code)
    sys.exit(code)


def _end_agents_run_by_signal(code: int) -> None:
    """Under a W&B agent a run that was stopped ends by SIGTERM: an exit code would count as one of its failures."""
    from qtarget.record.wandb_sweep import under_agent
    from qtarget.signals import EXIT_CODE

    if code == EXIT_CODE and under_agent():
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def run(words: Sequence[str]) -> int:
    """`qtarget WORDS`. Returns the exit code."""
    if not words or words[0] in HELP or list(words) == ["help"]:
        print(USAGE)
        return 0
    name, *rest = (words[1], HELP[0]) if words[0] == "help" else words
    if name in ("-V", "--version"):
        from qtarget import __version__

        print(f"qtarget {__version__}")
        return 0
    if name not in COMMANDS:
        from qtarget.config.composing import nearest

        print(f"qtarget: unknown command {name!r}{nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    from qtarget.signals import run_with_error_messages

    return run_with_error_messages(lambda: _command(name, rest))


def _command(name: str, rest: list[str]) -> int:
    from qtarget.extras import require_lab
    from qtarget.sweep.agent_runs import restore_swept_values

    require_lab(f"`qtarget {name}`")
    if name != "train" and set(HELP) & set(rest):  # wherever it stands; Hydra's help of train is of a configuration
        print(TEXTS[name] if name in TEXTS else PARSERS[name]().format_help().rstrip())
        return 0
    return COMMAND_FUNCTIONS[name](restore_swept_values(rest))


def command(*arguments: str) -> None:
    """`qtarget ARGUMENTS` in this process, for notebooks: command("train", "-m", "target=sft,dft", "model=tiny").

    Raises QTargetError where the command would end with an exit code other than 0; what was wrong is printed before.
    """
    import shlex

    from qtarget.errors import QTargetError

    if code := run(arguments):
        raise QTargetError(f"{shlex.join(['qtarget', *arguments])} ended with exit code {code}; it says above why")


def _train(rest: list[str]) -> int:
    from qtarget.launch.multirun import launch

    return launch(rest)


def _sweep(rest: list[str]) -> int:
    from qtarget.config.parsers import sweep_parser
    from qtarget.config.shipped_sweeps import list_sweeps, sweep_file, sweeps_dir

    parser = sweep_parser()
    options = parser.parse_intermixed_args(rest)
    if options.list:
        print(*list_sweeps(), f"files, for `wandb sweep`: {sweeps_dir()}", sep="\n")
        return 0
    if options.file is None:
        parser.error("the following arguments are required: file. `qtarget sweep --list` names the shipped ones")
    from qtarget.sweep.command import sweep

    file, overrides = _file_and_overrides([options.file, *options.overrides])
    return sweep(
        sweep_file(file),
        overrides,
        slot_count=options.slots,
        devices=options.gpus,
        max_points=options.count,
        seed=options.seed,
        retry=options.retry,
    )


def _file_and_overrides(words: list[str]) -> tuple[str, list[str]]:
    """The sweep's file, before or behind key=value."""
    from qtarget.errors import QTargetError

    files = [word for word in words if "=" not in word] or words[:1]
    if len(files) > 1:
        raise QTargetError(f"sweep takes one file, got {', '.join(files)}; overrides are key=value")
    words.remove(files[0])
    return files[0], words


def _data(rest: list[str]) -> int:
    from qtarget.run.data_command import data

    return data(rest)


def _cache(rest: list[str]) -> int:
    from qtarget.run.cache_command import cache

    return cache(rest)


def _evaluate(rest: list[str]) -> int:
    from qtarget.run.evaluate import evaluate

    return evaluate(rest)


def _compare(rest: list[str]) -> int:
    from qtarget.config.parsers import compare_parser

    parser = compare_parser()
    options = parser.parse_intermixed_args(rest)
    keys, best_of = ([key for key in text.split(",") if key] for text in (options.group_by, options.best_of))
    if options.by and not best_of:
        parser.error("--by says what --best-of KEY chooses by: give that too")
    others = (keys, best_of, options.against, options.out, options.metric, options.failed)
    if options.against and not keys:
        parser.error("--against names a group: give --group-by KEY too")
    if options.paired and (any(others) or options.format != "rich"):
        parser.error("--paired prints one difference: it goes with no other option")
    if options.paired:
        from qtarget.compare.pairs import compare_paired

        return compare_paired(options.paths, options.paired)

    from qtarget.compare.command import compare

    return compare(
        options.paths,
        options.out,
        options.format,
        group_by=keys,
        metric=options.metric,
        against=options.against,
        best_of=best_of,
        by=options.by,
        failed=options.failed,
    )


def _power(rest: list[str]) -> int:
    from qtarget.config.parsers import power_parser

    parser = power_parser()
    given = vars(parser.parse_intermixed_args(rest))
    paths, accuracy = given.pop("paths"), given["accuracy"]
    keys = [key for key in given.pop("group_by").split(",") if key]
    if bool(paths) is (accuracy is not None):
        parser.error("name the folder of a pilot, such as outputs/pilot, or without one give --accuracy and --rows")
    if given["discordant"] is not None and accuracy is None:
        parser.error("--discordant goes with --accuracy, without a pilot")
    if accuracy is not None and (keys or given["against"] or given["metric"]):
        parser.error("--accuracy reckons without runs: it takes no --metric, --group-by or --against")
    from qtarget.compare.power import PowerOptions, power_command

    return power_command(paths, PowerOptions(group_by=keys, **given))


def _export(rest: list[str]) -> int:
    from qtarget.run.export import export

    return export(rest)


def _clean(rest: list[str]) -> int:
    from qtarget.run.clean import clean

    return clean(rest)


def _watch(rest: list[str]) -> int:
    from qtarget.config.parsers import watch_parser

    parser = watch_parser()
    options = parser.parse_intermixed_args(rest)
    if not 0.2 <= options.every <= 3600:
        parser.error(f"--every takes 0.2 to 3600 seconds, got {options.every:g}")
    if not 0 <= options.port <= 65535:
        parser.error(f"--port takes 0 to 65535, got {options.port}")
    from qtarget.compare.command import CompareOptions
    from qtarget.compare.watch import watch

    keys = [key for key in options.group_by.split(",") if key]
    if options.against and not keys:
        parser.error("--against names a group: give --group-by KEY too")
    compared = CompareOptions(group_by=keys, metric=options.metric, against=options.against)
    return watch(options.paths, compared, port=options.port, every=options.every, browser=not options.no_browser)


def _show(rest: list[str]) -> int:
    from qtarget.run.show import show

    return show(rest)


def _lens(rest: list[str]) -> int:
    from qtarget.lens.command import lens

    return lens(rest)


def _agents(rest: list[str]) -> int:
    from qtarget.sweep.agents import agents

    return agents(rest)


def _dashboard(rest: list[str]) -> int:
    from qtarget.compare.dashboard import dashboard

    return dashboard(rest)


def _doctor(rest: list[str]) -> int:
    from qtarget.errors import QTargetError
    from qtarget.run.doctor import doctor

    if rest:
        raise QTargetError(f"doctor takes no arguments, got {rest[0]!r}")
    return doctor()


def _completion(rest: list[str]) -> int:
    from qtarget.config.completion import completion

    return completion(rest)


COMMAND_FUNCTIONS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sweep": _sweep,
    "data": _data,
    "cache": _cache,
    "evaluate": _evaluate,
    "compare": _compare,
    "power": _power,
    "watch": _watch,
    "export": _export,
    "clean": _clean,
    "agents": _agents,
    "dashboard": _dashboard,
    "show": _show,
    "lens": _lens,
    "doctor": _doctor,
    "completion": _completion,
}
"""Command → what runs it on its arguments; their names are also `COMMANDS`, for completion."""

if __name__ == "__main__":  # python -m qtarget.cli; processes that a run starts import this module anew
    main()

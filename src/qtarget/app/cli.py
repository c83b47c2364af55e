"""The `qtarget` command. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

USAGE = """qtarget: fine-tune language models towards designed targets, and compare the designs

  qtarget train [-m] [overrides]     fine-tune one configuration, or with -m every combination
                                     qtarget train -m target=sft,dft,target_sft model=tiny
  qtarget sweep FILE [--slots N] …   a W&B sweep file without W&B: grid, random, bayes, early_terminate
  qtarget cache detail=hidden …      score the data with the prior or a teacher once, for all runs to share
  qtarget evaluate checkpoint=WHERE  a checkpoint or any model: avg@k, pass@k, maj@k, calibration, retention
  qtarget compare DIR…               table, report.html and comparison.png of the runs below DIR
  qtarget agents SWEEP --gpus 0-7    a W&B agent per GPU, for a sweep that `wandb sweep sweeps/NAME.yaml` made
  qtarget dashboard --project NAME   a workspace and a report at W&B that set the project's designs side by side
  qtarget show target=NAME           a target design in words: formula, γ, residual, w, what it needs, paper
  qtarget lens target=NAME,…         what a design teaches, as curves; with checkpoint=RUN token by token
  qtarget doctor                     versions, device, where the model comes from, what is missing
  qtarget completion bash|zsh|fish   what your shell needs to complete all of this; --help says where to put it

Overrides are Hydra's: key=value, group=option. `qtarget train --cfg job` prints the whole configuration,
`qtarget train --help` the groups and their options. HYDRA_FULL_ERROR=1 shows full tracebacks.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a job failed, 2 the input has to be mended, 130 and 143 interrupted."""
    from qtarget.app.lifeline import hold_on

    hold_on()
    sys.path.insert(0, os.getcwd())  # parts of your own are found in the folder you work in
    given = list(sys.argv[1:] if arguments is None else arguments)
    code = run(given)
    _end_as_asked(code)
    sys.exit(code)


def _end_as_asked(code: int) -> None:
    """Under a W&B agent end by the signal: the agent takes an exit code for a failure, and gives up after some."""
    from qtarget.stopping import EXIT_CODE
    from qtarget.track.sweep import under_agent

    if code == EXIT_CODE and under_agent():
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def run(given: Sequence[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    name, *rest = given
    if name in ("-V", "--version"):
        from qtarget import __version__

        print(f"qtarget {__version__}")
        return 0
    if name not in COMMANDS:
        from qtarget.app.configs import nearest

        print(f"qtarget: unknown command {name!r}{nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    return guarded(lambda: _command(name, rest))


def _command(name: str, rest: list[str]) -> int:
    from qtarget.app.handed import as_swept
    from qtarget.extras import require_lab

    require_lab(f"`qtarget {name}`")
    return COMMANDS[name](as_swept(rest))


def command(*arguments: str) -> None:
    """`qtarget ARGUMENTS` in this process, for notebooks: command("train", "-m", "target=sft,dft", "model=tiny").

    Raises QTargetError where the command would end with an exit code other than 0; what was wrong is printed before.
    """
    import shlex

    from qtarget.errors import QTargetError

    if code := run(arguments):
        raise QTargetError(f"{shlex.join(['qtarget', *arguments])} ended with exit code {code}; it says above why")


def guarded(command: Callable[[], int]) -> int:
    """Errors that are the user's to mend in one message, without a traceback."""
    from qtarget.errors import FULL_ERROR, QTargetError
    from qtarget.stopping import EXIT_CODE, Terminated

    try:
        return command()
    except SystemExit as ended:  # argparse's way
        return ended.code if isinstance(ended.code, int) else 2
    except QTargetError as error:
        if os.environ.get(FULL_ERROR):
            raise
        print(f"qtarget: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Terminated) as error:
        print(
            "qtarget: interrupted; finished jobs are kept, the same command goes on where a state was saved and starts "
            "the others afresh",
            file=sys.stderr,
        )
        return EXIT_CODE if isinstance(error, Terminated) else 130


def _train(rest: list[str]) -> int:
    from qtarget.app.launch import launch

    return launch(rest)


def _sweep(rest: list[str]) -> int:
    import argparse
    from pathlib import Path

    from qtarget.app.slots import gpus

    parser = argparse.ArgumentParser(prog="qtarget sweep", description="Run a W&B sweep file on this machine alone.")
    parser.add_argument("file", type=Path, help="the sweep, such as sweeps/smoothing.yaml")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="key=value for every job")
    parser.add_argument("--slots", type=int, metavar="N", help="jobs at once (default: one a GPU, or one)")
    parser.add_argument("--gpus", type=gpus, metavar="0-7", help="CUDA devices: 0-7 or 0,1 (default: all visible)")
    parser.add_argument("--count", type=int, metavar="N", help="points in all (default: the file's run_cap)")
    parser.add_argument("--seed", type=int, default=0, help="of random and Bayesian search (default: 0)")
    parser.add_argument("--retry", type=int, default=0, help="how often a job that crashed is started again")
    options = parser.parse_intermixed_args(rest)

    from qtarget.app.sweep import sweep

    return sweep(
        options.file,
        options.overrides,
        count=options.slots,
        devices=options.gpus,
        cap=options.count,
        seed=options.seed,
        retry=options.retry,
    )


def _cache(rest: list[str]) -> int:
    from qtarget.app.cache import build

    return build(rest)


def _evaluate(rest: list[str]) -> int:
    from qtarget.app.evaluate import evaluate

    return evaluate(rest)


def _compare(rest: list[str]) -> int:
    parser = _compare_parser()
    options = parser.parse_intermixed_args(rest)
    keys, best_of = ([key for key in text.split(",") if key] for text in (options.group_by, options.best_of))
    if options.by and not best_of:
        parser.error("--by says what --best-of KEY chooses by: give that too")
    others = (keys, best_of, options.against, options.out, options.metric)
    if options.against and not keys:
        parser.error("--against names a group: give --group-by KEY too")
    if options.paired and (any(others) or options.format != "rich"):
        parser.error("--paired prints one difference: it goes with no other option")
    if options.paired:
        from qtarget.app.pairing import compare_paired

        return compare_paired(options.paths, options.paired)

    from qtarget.app.compare import compare

    return compare(
        options.paths,
        options.out,
        options.format,
        group_by=keys,
        metric=options.metric,
        against=options.against,
        best_of=best_of,
        by=options.by or "val/accuracy",
    )


def _compare_parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(prog="qtarget compare", description="Compare the runs below folders.")
    parser.add_argument("paths", nargs="+", metavar="DIR", help="run folders, or folders that hold some")
    parser.add_argument("--out", help="where report.html and comparison.png go (default: the first DIR)")
    parser.add_argument("--format", choices=("rich", "md", "csv", "tex"), default="rich", help="of the printed table")
    parser.add_argument(
        "--group-by",
        metavar="KEY,…",
        default="",
        help="take runs together that agree in these keys (target,data.noise.rate) and differ in their seed",
    )
    parser.add_argument(
        "--metric",
        help="of --group-by, and of the page's plots over what differs (default: test/accuracy, or test/nll where "
        "nothing was answered; without --group-by a sweep's own)",
    )
    parser.add_argument(
        "--against", metavar="KEY=VALUE", action="append", default=[], help="the group that others are set against"
    )
    parser.add_argument(
        "--best-of",
        metavar="KEY,…",
        default="",
        help="show each group at its best value of these keys (optim.lr), all seeds of it, chosen by --by",
    )
    parser.add_argument("--by", help="the validation metric that --best-of chooses by (default: val/accuracy)")
    parser.add_argument(
        "--paired", metavar="METRIC", help="of two runs: their difference in accuracy, pass@8, … prompt by prompt"
    )
    return parser


def _show(rest: list[str]) -> int:
    from qtarget.app.show import show

    return show(rest)


def _lens(rest: list[str]) -> int:
    from qtarget.app.lens import lens

    return lens(rest)


def _agents(rest: list[str]) -> int:
    from qtarget.app.agents import agents

    return agents(rest)


def _dashboard(rest: list[str]) -> int:
    from qtarget.app.dashboard import dashboard

    return dashboard(rest)


def _doctor(rest: list[str]) -> int:
    import argparse

    argparse.ArgumentParser(prog="qtarget doctor", description="What this machine has and lacks.").parse_args(rest)
    from qtarget.app.doctor import doctor

    return doctor()


def _completion(rest: list[str]) -> int:
    from qtarget.app.completion import completion

    return completion(rest)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sweep": _sweep,
    "cache": _cache,
    "evaluate": _evaluate,
    "compare": _compare,
    "agents": _agents,
    "dashboard": _dashboard,
    "show": _show,
    "lens": _lens,
    "doctor": _doctor,
    "completion": _completion,
}


if __name__ == "__main__":  # python -m qtarget.app.cli, as python -m qtarget
    main()

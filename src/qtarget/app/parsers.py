"""The parsers of commands that take options, by the command's name; what they parse is run by qtarget.app.cli."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from qtarget.app.arguments import Parser, train_parser

DASHBOARD = "Target designs"


def parser_of(name: str) -> Parser | None:
    """None: the command takes keys alone."""
    return PARSERS[name]() if name in PARSERS else None


def keys_parser(name: str) -> Parser:
    """Of a command that takes keys, and shows the configuration that they make."""
    parser = Parser(prog=f"qtarget {name}", add_help=False)
    parser.add_argument("keys", nargs="*")
    parser.add_argument("--cfg", "-c", choices=("job",))
    return parser


def sweep_parser() -> Parser:
    from qtarget.app.slots import gpus

    parser = Parser(prog="qtarget sweep", description="Run a W&B sweep file on this machine alone.")
    parser.add_argument("file", help="the sweep, such as sweeps/smoothing.yaml")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="key=value for every job")
    parser.add_argument("--slots", type=int, metavar="N", help="jobs at once (default: one a GPU, or one)")
    parser.add_argument("--gpus", type=gpus, metavar="0-7", help="CUDA devices: 0-7 or 0,1 (default: all visible)")
    parser.add_argument("--count", type=int, metavar="N", help="points in all (default: the file's run_cap)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random and Bayesian search (default: 0)")
    parser.add_argument(
        "--retry", type=int, default=0, metavar="N", help="how often a job that crashed is started again"
    )
    return parser


def compare_parser() -> Parser:
    parser = Parser(prog="qtarget compare", description="Compare the runs below folders.")
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


def agents_parser() -> Parser:
    from qtarget.app.slots import gpus

    parser = Parser(prog="qtarget agents", description="W&B agents on this machine, one per GPU.")
    parser.add_argument("sweep", metavar="ENTITY/PROJECT/ID", help="what `wandb sweep FILE` has printed")
    parser.add_argument("--gpus", type=gpus, metavar="0-7", help="CUDA devices: 0-7 or 0,1 (default: all visible)")
    parser.add_argument("--agents", type=int, metavar="N", help="so many in all (default: one per GPU, or one)")
    parser.add_argument("--count", type=int, metavar="N", help="runs of each agent (default: until the sweep is over)")
    parser.add_argument("--restarts", type=int, default=3, metavar="N", help="of an agent that crashes (%(default)s)")
    parser.add_argument("--pause", type=float, default=10.0, metavar="S", help="seconds before that (%(default)s)")
    return parser


def dashboard_parser() -> Parser:
    parser = Parser(prog="qtarget dashboard", description="Target designs compared at W&B.")
    parser.add_argument(
        "--project", required=True, metavar="ENTITY/PROJECT", help="or PROJECT alone, of your default entity"
    )
    parser.add_argument("--name", default=DASHBOARD, help="of the workspace and the report (default: %(default)s)")
    return parser


PARSERS: dict[str, Callable[[], Parser]] = {
    "train": train_parser,
    "sweep": sweep_parser,
    "cache": partial(keys_parser, "cache"),
    "evaluate": partial(keys_parser, "evaluate"),
    "compare": compare_parser,
    "agents": agents_parser,
    "dashboard": dashboard_parser,
}

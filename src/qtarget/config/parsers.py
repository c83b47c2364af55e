"""What the commands take: their names, `--help` texts and parsers of options. qtarget.cli runs what they parse."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from functools import partial

from qtarget.config.arguments import Parser, train_parser

USAGE = """qtarget: fine-tune language models towards designed targets, and compare the designs

  qtarget train [-m] [overrides]     fine-tune one configuration, or with -m every combination
                                     qtarget train -m target=sft,dft,target_sft model=tiny
  qtarget sweep FILE [--slots N] …   a W&B sweep file without W&B: grid, random, bayes, early_terminate; --list
                                     names those that are shipped
  qtarget data data=… model=…        what training would read: rows, lengths, and some of them with what is supervised
  qtarget cache detail=hidden …      score the data with the prior or a teacher once, for all runs to share
  qtarget evaluate checkpoint=WHERE  a checkpoint or any model: avg@k, pass@k, maj@k, calibration, retention
  qtarget compare DIR…               table, report.html and comparison.png of the runs below DIR
  qtarget power PILOT                what difference of designs an experiment will tell apart, by seeds and rows
  qtarget watch DIR…                 the same page live, on this machine alone, while runs go on
  qtarget export RUN --to WHERE      the trained model with a model card, as a folder or at the hub (hub:OWNER/NAME)
  qtarget clean [DIR…] [--yes]       what of runs and caches nobody needs any more: listed, and with --yes freed
  qtarget agents SWEEP --gpus 0-7    a W&B agent per GPU, for a sweep that `wandb sweep sweeps/NAME.yaml` made
  qtarget dashboard --project NAME   a workspace and a report at W&B that set the project's designs side by side
  qtarget show target=NAME           a target design in words: formula, γ, residual, w, what it needs, paper
  qtarget lens target=NAME,…         what a design teaches, as curves; with checkpoint=RUN token by token
  qtarget doctor                     versions, device, where the model comes from, what is missing
  qtarget completion bash|zsh|fish   what your shell needs to complete all of this; --help says where to put it

Overrides are Hydra's: key=value, group=option. `qtarget train --cfg job` prints the whole configuration,
`qtarget train --help` the groups and their options, `qtarget COMMAND --help` what any command takes.
HYDRA_FULL_ERROR=1 shows full tracebacks.
"""

COMMANDS = (
    "train",
    "sweep",
    "data",
    "cache",
    "evaluate",
    "compare",
    "power",
    "watch",
    "export",
    "clean",
    "agents",
    "dashboard",
    "show",
    "lens",
    "doctor",
    "completion",
)

DATA = """qtarget data: what training would read, before anything is trained

  KEY=VALUE, GROUP=OPTION     any override of `qtarget train`: data, model, …
  --rows N                    rows that are shown as the model reads them, supervised text marked (default: 3)
  --out FILE                  the same as a page, FILE.html
  --audit                     score the rows with the model, once for all runs on them: which contradict it most, which
                              repeat or contradict another, end as if cut or hold marks of a template
  --suspicious FILE           with --audit: those rows as JSON lines, to be mended by hand
  --cfg job                   print the configuration, read nothing

  qtarget data data=files data.source.path=rows.jsonl data.source.heldout=val.jsonl model=MODEL
It ends with exit code 2 where training would refuse the rows, and says why."""

CACHE = """qtarget cache: score a data set once with the prior or a teacher, before the runs that share the scores;
or list what runs share, and free it

  detail=label|sampled|topk|hidden   what is kept of each token (default: hidden)
  role=prior|teacher                 whose scores (default: prior)
  KEY=VALUE, GROUP=OPTION            any override of `qtarget train`: data, model, references.teacher.name, …
  --cfg job                          print the configuration, score nothing

  [NAME…]                     without keys: lists what lies in QTARGET_CACHE for runs to share, scores of references and
                              prepared data; NAME is of a folder, a pattern, `references` or `prepared`
  --yes                       frees what is listed and nobody uses now

  qtarget cache data=gsm_symbolic detail=label
  qtarget cache role=teacher references.teacher.name=MODEL detail=topk references.teacher.topk=50"""

EVALUATE = """evaluate takes checkpoint=WHERE (a run, a folder of runs, a model's folder or its id) and overrides of
`qtarget train`:
  qtarget evaluate checkpoint=outputs/runs/HASH eval.samples=8 eval.temperature=1
  qtarget evaluate checkpoint=MODEL data=gsm_symbolic eval=small name=ROW_LABEL
With --cfg job it prints the configuration and evaluates nothing."""

SHOW = "show takes target=NAME,…, target/PART=OPTION and target.PART.FIELD=VALUE"

LENS = (
    "lens takes target=NAME,…, target/PART=OPTION, target.PART.FIELD=VALUE, --against DESIGN and out=FOLDER; with "
    "checkpoint=WHERE also rows=N and the overrides of `qtarget train`; or RUN and out=FOLDER: what a run with "
    "lens.every has recorded over training"
)

SHOW_EXAMPLES = """
  qtarget show
  qtarget show target=target_sft target/residual=uniform target.reliance.alpha=0.5"""

LENS_EXAMPLES = """
  qtarget lens target=sft,dft,target_sft
  qtarget lens target=dft checkpoint=outputs/runs/HASH rows=8
  qtarget lens target=dft,kd --against sft                           differences to sft, and ratios
  qtarget lens target=target_sft --against target_sft target.reliance.alpha=0.5
                                                                     what follows --against changes that design alone
  qtarget lens outputs/runs/HASH                                     over training, of a run with lens.every=10"""

DOCTOR = "qtarget doctor: versions, device, where the model comes from, what is missing. It takes no arguments."

COMPLETION = """qtarget completion SHELL: print the completion script of bash, zsh or fish

  eval "$(qtarget completion bash)"       in ~/.bashrc
  eval "$(qtarget completion zsh)"        in ~/.zshrc
  qtarget completion fish | source        in ~/.config/fish/config.fish"""

TEXTS = {
    "data": DATA,
    "cache": CACHE,
    "evaluate": EVALUATE,
    "show": SHOW + SHOW_EXAMPLES,
    "lens": LENS + LENS_EXAMPLES,
    "doctor": DOCTOR,
    "completion": COMPLETION,
}
"""Command → the whole text of its help."""


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


def cache_parser() -> Parser:
    parser = keys_parser("cache")
    parser.add_argument("--yes", action="store_true")
    return parser


def data_parser() -> Parser:
    parser = keys_parser("data")
    parser.add_argument("--rows", type=int, default=3, metavar="N")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--audit", action="store_true")
    parser.add_argument("--suspicious", metavar="FILE")
    return parser


def gpus(text: str) -> list[int]:
    """CUDA devices as a command line has them: "0-3,6" → [0, 1, 2, 3, 6]."""
    spans = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in text.split(",")]
    devices = [index for span in spans if span for index in range(int(span[1]), int(span[2] or span[1]) + 1)]
    if None in spans or not devices or len(set(devices)) < len(devices):
        raise ArgumentTypeError(f"{text!r} names no CUDA devices: write 0-7 or 0,1, each once")
    return devices


def sweep_parser() -> Parser:
    parser = Parser(prog="qtarget sweep", description="Run a W&B sweep file on this machine alone.")
    parser.add_argument("file", nargs="?", help="the sweep: a file, or the name of a shipped one, such as smoothing")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="key=value for every job")
    parser.add_argument("--list", action="store_true", help="name the shipped ones, a line each")
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
    parser.add_argument(
        "--by", help="the validation metric that --best-of chooses by (default: val/accuracy, or val/nll)"
    )
    parser.add_argument("--failed", action="store_true", help="draw runs that failed as far as they came; list in csv")
    parser.add_argument(
        "--paired",
        metavar="METRIC",
        help="of two runs: their difference in accuracy, pass@8, … prompt by prompt, or in nll row by row",
    )
    return parser


def counts(text: str) -> list[int]:
    """Whole numbers as a command line has them: "200,400" → [200, 400]."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ArgumentTypeError(f"{text!r} are no whole numbers: write 200 or 200,400")
    return sorted({int(part) for part in text.split(",")})


def power_parser() -> Parser:
    parser = Parser(
        prog="qtarget power",
        description="What difference of two designs an experiment will tell apart, by the variance of a pilot.",
    )
    parser.add_argument("paths", nargs="*", metavar="DIR", help="the pilot: finished runs of two designs or more")
    parser.add_argument("--metric", help="test/accuracy, nll, bits_per_byte, … (default: as of `qtarget compare`)")
    parser.add_argument("--group-by", metavar="KEY,…", default="", help="what tells designs apart (default: target)")
    parser.add_argument(
        "--against",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="the design that others are set against (default: every two of them)",
    )
    parser.add_argument("--rows", type=counts, default=[], metavar="N,…", help="held-out rows that are planned")
    parser.add_argument("--seeds", type=counts, default=[], metavar="N,…", help="how many seeds are planned")
    parser.add_argument("--power", type=float, default=0.8, help="how often it is to be detected (default: 0.8)")
    parser.add_argument("--alpha", type=float, default=0.05, help="what p has to be below (default: 0.05)")
    parser.add_argument(
        "--designs", type=int, default=2, metavar="N", help="p is corrected (Holm) for N − 1 comparisons (default: 2)"
    )
    parser.add_argument(
        "--difference", type=float, metavar="D", help="show the power for it, as the table writes it: 5 is 5 %% points"
    )
    parser.add_argument("--accuracy", type=float, metavar="SHARE", help="without a pilot: 0.6, of both designs or so")
    parser.add_argument(
        "--discordant", type=float, metavar="SHARE", help="with --accuracy: of rows that one design alone solves"
    )
    parser.add_argument("--format", choices=("rich", "md", "csv", "tex"), default="rich", help="of the printed table")
    return parser


def watch_parser() -> Parser:
    parser = Parser(prog="qtarget watch", description="The page of the runs below folders, live while they go on.")
    parser.add_argument("paths", nargs="+", metavar="DIR", help="folders that hold runs, or will")
    parser.add_argument("--group-by", metavar="KEY,…", default="", help="as of `qtarget compare`")
    parser.add_argument("--metric", help="as of `qtarget compare`")
    parser.add_argument("--against", metavar="KEY=VALUE", action="append", default=[], help="as of `qtarget compare`")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1 (default: a free one)")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between two looks (default: 2)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    return parser


def export_parser() -> Parser:
    parser = Parser(prog="qtarget export", description="The trained model of a run as others load it, with a card.")
    parser.add_argument("run", metavar="RUN", help="a finished run's folder, or a folder with one such run")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FOLDER|hub:OWNER/NAME",
        help="a folder that isn't there or is empty; a repository",
    )
    parser.add_argument("--public", action="store_true", help="a repository that all can see (default: private)")
    parser.add_argument("--dry-run", action="store_true", help="list the files and print the card, write nothing")
    return parser


def clean_parser() -> Parser:
    parser = Parser(
        prog="qtarget clean",
        description="List what nobody needs any more; configurations and results of runs that trained stay, always.",
    )
    parser.add_argument("paths", nargs="*", metavar="DIR", help="folders of results (default: outputs)")
    parser.add_argument("--yes", action="store_true", help="free what is listed")
    parser.add_argument(
        "--checkpoint",
        metavar="RUN",
        action="append",
        default=[],
        help="also this finished run's checkpoint, or those of a folder of runs; repeatable",
    )
    parser.add_argument("--optimizer", action="store_true", help="also optimizer.pt of finished runs")
    parser.add_argument(
        "--caches",
        action="store_true",
        help="also the caches in QTARGET_CACHE that nothing reads now, scores and prepared data; runs that are yet to "
        "read them are seen below DIR and outputs only",
    )
    return parser


def agents_parser() -> Parser:
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
    "data": data_parser,
    "cache": cache_parser,
    "evaluate": partial(keys_parser, "evaluate"),
    "compare": compare_parser,
    "power": power_parser,
    "watch": watch_parser,
    "export": export_parser,
    "clean": clean_parser,
    "agents": agents_parser,
    "dashboard": dashboard_parser,
}

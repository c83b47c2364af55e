"""Arguments in any order, help of every command, the ways to start it, and what a slip of the pen is answered."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra._internal.utils import get_args_parser  # what Hydra reads its arguments with, 1.3 and 1.4

import qtarget
from qtarget.cli import run as qtarget_cli
from qtarget.config.arguments import OPTIONS, REFUSED, parse_train_arguments
from qtarget.config.composing import compose_config, with_search_path
from qtarget.config.identity import register_resolvers
from qtarget.config.parsers import COMMANDS, sweep_parser
from qtarget.launch.slots import Job

PIECES: dict[str, list[list[str]]] = {
    "configuration": [["target=dft"], ["model=tiny"], ["--cfg", "job"], ["--package", "target"], ["--resolve"]],
    "short": [["target=dft"], ["-c", "job"], ["-p", "target"], ["model=tiny"]],
    "joined": [["target=dft"], ["--cfg=all"], ["--package=hydra"], ["+a=1"], ["~optim"]],
    "multirun": [["target=sft,dft"], ["-m"], ["model=tiny"], ["seed=0,1"]],
    "multirun in full": [["target=sft,dft"], ["--multirun"], ["model=tiny"]],
    "run": [["-r"], ["target=dft"], ["model=tiny"]],
    "info": [["--info"], ["target=dft"], ["model=tiny"]],
    "info of one": [["-i", "searchpath"], ["target=dft"], ["model=tiny"]],
    "folder": [["--config-dir", "own"], ["target=mine"], ["-m"], ["model=tiny"]],
    "short folder": [["-cd", "own"], ["target=mine"], ["--cfg", "job"]],
    "name": [["-cn", "own"], ["-cp", "there"], ["target=mine"], ["-m"]],
    "help": [["--help"], ["target=dft"], ["model=tiny"]],
    "Hydra's help": [["--hydra-help"], ["target=dft"], ["-m"]],
}


@pytest.mark.parametrize("with_conf", [True, False], ids=["conf", "no conf"])
@pytest.mark.parametrize("case", PIECES)
def test_hydra_reads_the_same_whatever_the_order(case: str, with_conf: bool, workdir: Path) -> None:
    """Hydra 1.3.8 with argparse refuses most of these orders: "unrecognized arguments"."""
    if with_conf:
        Path("conf").mkdir()
    read = []
    for order in itertools.permutations(PIECES[case]):
        given = [word for piece in order for word in piece]
        arguments = parse_train_arguments(given)
        overrides = with_search_path(arguments.overrides)
        options = vars(get_args_parser().parse_args([*overrides, *arguments.options]))
        assert options.pop("overrides")[: len(arguments.overrides)] == [w for w in given if w in arguments.overrides]
        assert len(overrides) - len(arguments.overrides) == with_conf
        read.append(options | {"given": sorted(arguments.overrides)})
    assert all(one == read[0] for one in read)
    plain = [piece for piece in PIECES[case] if piece[0].startswith("-") and piece[0] != "--info"]
    for flag, *value in plain:  # and what Hydra reads is what was written
        name, equals, joined = flag.partition("=")
        dest = next(names[0] for names, _ in OPTIONS if name in names).removeprefix("--").replace("-", "_")
        assert read[0][dest] == (joined if equals else value[0] if value else True)


def test_every_option_of_hydra_is_taken_or_refused_by_name() -> None:
    ours = {name for names, _ in OPTIONS for name in names} | set(REFUSED)
    theirs = {name for action in get_args_parser()._actions for name in action.option_strings}
    assert theirs == ours


@pytest.mark.parametrize("order", list(itertools.permutations(["target=mine", "model=tiny", "--cfg=job"])))
def test_a_configuration_is_shown_beside_a_conf_folder(
    order: tuple[str, ...], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _own_design(Path("conf"))
    assert qtarget_cli(["train", *order, "--package", "target.reliance.alpha"]) == 0
    assert capsys.readouterr().out == "0.125\n"


def test_folders_named_on_the_command_line_are_searched_beside_conf(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra reads one hydra.searchpath; --config-dir is another way to name a folder."""
    Path("conf").mkdir()
    _own_design(Path("it's own"))
    searched = f"hydra.searchpath=['file://{workdir}/it\\'s own']"
    for given in (["--cfg", "job", searched, "target=mine"], ["target=mine", "-cd", "it's own", "-c", "job"]):
        assert qtarget_cli(["train", *given, "-p", "target.reliance.alpha"]) == 0
        assert capsys.readouterr().out == "0.125\n"
    assert qtarget_cli(["train", "-cd", "it's own", "target=mine", "--cfg", "job", "optim.lrr=1"]) == 2
    assert "unknown key 'optim.lrr': did you mean 'lr'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [["-m", "target=mine,sft"], ["target=mine,sft", "-m"], ["seed=0", "--mult", "target=mine,sft"]],
    ids=" ".join,
)
def test_a_multirun_is_one_wherever_m_stands(
    given: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to Hydra's launch of two jobs, which refuse themselves: nothing is trained."""
    _own_design(Path("conf"))
    assert qtarget_cli(["train", *given, "model=tiny", "trainer.precision=none"]) == 2
    assert "2 of 2 jobs failed" in capsys.readouterr().err


@pytest.mark.parametrize("order", list(itertools.permutations(["detail=topk", "optim=mine", "--cfg=job"])))
def test_cache_shows_its_configuration_in_any_order(
    order: tuple[str, ...], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "conf" / "optim").mkdir(parents=True)
    (workdir / "conf" / "optim" / "mine.yaml").write_text("defaults: [adamw]\nlr: 0.125\n")
    assert qtarget_cli(["cache", *order]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["optim"]["lr"], shown["references"]["prior"]["detail"]) == (0.125, "topk")
    assert [path.name for path in workdir.iterdir()] == ["conf"]


def test_evaluate_shows_its_configuration(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["--cfg", "job", "checkpoint=tiny", "seed=7"], ["checkpoint=tiny", "-c", "job", "seed=7"]):
        assert qtarget_cli(["evaluate", *given]) == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert (shown["seed"], shown["trainer"]["max_steps"]) == (7, 0)
    assert not any(workdir.iterdir())


@pytest.mark.parametrize("words", [["a.yaml", "model=tiny"], ["model=tiny", "a.yaml"]])
def test_the_file_of_a_sweep_may_stand_behind_overrides(
    words: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qtarget_cli(["sweep", "--slots", "1", *words]) == 2
    assert "a.yaml" in capsys.readouterr().err
    Path("a.yaml").write_text("method: grid\nparameters:\n  seed:\n    values: []\n")
    assert qtarget_cli(["sweep", *words, "--slots", "1"]) == 2
    assert "seed: values must be a list of at least one" in capsys.readouterr().err


def test_paths_of_compare_may_stand_around_its_options(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (workdir / name).mkdir()
    assert qtarget_cli(["compare", "one", "--format", "md", "two"]) == 2
    assert "one, two" in capsys.readouterr().err


def test_jobs_in_processes_of_their_own_search_the_same_folders(workdir: Path) -> None:
    """hydra/launcher=slots, submitit_slurm and ray start `qtarget train` anew."""
    Path("conf").mkdir()
    _own_design(Path("own"))
    overrides = with_search_path(["target=mine", "model=tiny"], "own")
    register_resolvers()
    config = compose_config("train", [*overrides, "hydra.job.num=0"], with_hydra=True)
    command = Job.from_config(config, ["target=mine", "model=tiny"]).command
    arguments = parse_train_arguments(command[4:])
    assert f"hydra.searchpath=['file://{workdir}/own','file://{workdir}/conf']" in arguments.overrides
    assert compose_config("train", arguments.overrides).target.reliance.alpha == 0.125


def _own_design(folder: Path) -> None:
    (folder / "target").mkdir(parents=True)
    (folder / "target" / "mine.yaml").write_text("defaults: [dft]\nreliance:\n  alpha: 0.125\n")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_every_command_shows_help_wherever_it_is_asked_for(
    name: str, flag: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = set()
    for rest in ([flag], [flag, "data=arithmetic"], ["data=arithmetic", flag], ["--nonsense", flag]):
        assert qtarget_cli([name, *rest]) == 0
        texts.add(capsys.readouterr().out)
    assert qtarget_cli(["help", name]) == 0
    assert texts == {capsys.readouterr().out}
    assert name in texts.pop()
    assert not any(workdir.iterdir())


def test_the_help_of_cache_names_its_keys_and_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["cache", "--help"]) == 0
    shown = capsys.readouterr().out
    for text in ("detail=label|sampled|topk|hidden", "role=prior|teacher", "qtarget cache data="):
        assert text in shown


def test_the_help_of_train_has_its_options_and_groups(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["--help"], ["model=tiny", "-h"], ["-h", "model=tiny"]):
        assert qtarget_cli(["train", *given]) == 0
        shown = capsys.readouterr().out
        assert "--multirun" in shown
        assert "target: asft" in shown


@pytest.mark.parametrize("module", ["qtarget", "qtarget.cli"])
@pytest.mark.parametrize("given", [["--version"], ["trian"], ["cache", "--help"]], ids="-".join)
def test_the_module_is_the_command(module: str, given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([sys.executable, "-m", module, *given], capture_output=True, text=True, check=False)
    code = qtarget_cli(given)
    wanted = capsys.readouterr()
    assert (done.returncode, done.stdout, done.stderr) == (code, wanted.out, wanted.err)


def test_a_reader_that_leaves_is_no_error() -> None:
    """`qtarget --help | head -1`, and a configuration of 130 lines that a closed pipe doesn't take."""
    command = f"{sys.executable} -m qtarget train --cfg job model=tiny | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


SLIPS: dict[str, tuple[list[str], str]] = {
    "command": (["trane"], "unknown command 'trane': did you mean 'train'? Allowed: agents, cache"),
    "help of no command": (["help", "trane"], "did you mean 'train'?"),
    "option": (["train", "--cgf", "job"], "unrecognized arguments: --cgf: did you mean '--cfg'? Allowed: --cfg"),
    "its value": (["train", "--cfg", "jobs"], "invalid choice: 'jobs' (choose from"),
    "its missing value": (["train", "model=tiny", "--package"], "expected one argument"),
    "option of sweep": (
        ["sweep", "file.yaml", "--slot", "2", "--gpu"],
        "sweep: argument --gpus: expected one argument",
    ),
    "no file": (["sweep"], "sweep: the following arguments are required: file"),
    "two files": (["sweep", "a.yaml", "b.yaml"], "sweep takes one file, got a.yaml, b.yaml"),
    "option of compare": (["compare", "x", "--fromat", "md"], "did you mean '--format'?"),
    "value of compare": (["compare", "x", "--format", "xml"], "invalid choice: 'xml'"),
    "option of agents": (["agents", "e/p/i", "--gpsu", "0"], "did you mean '--gpus'?"),
    "option of dashboard": (["dashboard"], "dashboard: the following arguments are required: --project"),
    "argument of doctor": (["doctor", "now"], "doctor takes no arguments, got 'now'"),
    "shell": (["completion", "tcsh"], "Allowed: bash, fish, zsh"),
    "option of cache": (["cache", "--detail", "topk"], "unrecognized arguments: --detail. Allowed: --cfg, --yes, -c"),
    "value of cache": (["cache", "detail=top"], "detail must be one of label, sampled, topk, hidden"),
    "several values": (["cache", "data=arithmetic,gsm8k"], "data takes one value here, got arithmetic,gsm8k"),
    "range of one": (["evaluate", "checkpoint=tiny", "seed=range(3)"], "seed takes one value here, got range(3)"),
    "run alone": (["evaluate", "outputs/runs/x"], "did you mean checkpoint=outputs/runs/x?"),
    "argument of show": (["show", "now"], "got 'now'"),
    "option of lens": (["lens", "--row"], "got '--row'"),
    "option's name alone": (["train", "dft"], "got 'dft': did you mean target=dft?"),
    "key": (["train", "optim.l=1"], "unknown key 'optim.l': did you mean 'lr'? Allowed:"),
    "key of an open part": (
        ["train", "data=reasoning_gym", "data.source.task=gcd", "data.source.options.max_numbers=3"],
        "is not there to be changed: add it with a plus, +data.source.options.max_numbers=3",
    ),
    "open part": (
        ["train", "data=reasoning_gym", "data.source.task=gcd", "data.source.options={max_numbers:3}"],
        "add it with a plus, +data.source.options={max_numbers:3}",
    ),
    "group": (["train", "modle=tiny"], "unknown key 'modle': did you mean 'model'? Allowed:"),
    "group's value": (["train", "model=tinny"], "unknown model 'tinny': did you mean 'tiny'? Allowed:"),
    "two modes": (["train", "-m", "--cfg", "job"], "of --multirun and --cfg leave one"),
    "package alone": (["train", "--package", "target"], "add --cfg job"),
    "no package": (["train", "--cfg", "job", "-p", "targt"], "no such part: did you mean 'target'?"),
    "resolved alone": (["train", "--resolve"], "add --cfg job"),
    "resolved without the job": (["train", "--resolve", "--cfg", "hydra"], "write --cfg all --resolve"),
    "pickle": (["train", "--experimental-rerun", "x.pickle"], "it reads a pickle"),
    "Hydra's completion": (["train", "-sc", "install=bash"], 'eval "$(qtarget completion bash)"'),
    "no such folder": (["train", "--cfg", "job", "-cd", "nowhere"], "nowhere' not found"),
    "search path": (["train", "hydra.searchpath=here"], "hydra.searchpath is a list of folders"),
}


@pytest.mark.parametrize("case", SLIPS)
def test_a_slip_is_answered_with_what_is_allowed(case: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("conf").mkdir()
    given, message = SLIPS[case]
    assert qtarget_cli(given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_errors_of_options_are_qtarget_errors() -> None:
    with pytest.raises(qtarget.QTargetError, match="did you mean '--count'"):
        sweep_parser().parse_args(["file.yaml", "--cuont=2"])

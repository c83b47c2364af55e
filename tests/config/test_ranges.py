"""range(…) in a multirun has the values that it says, or is refused with what to write instead."""

from __future__ import annotations

import shlex
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import qtarget
from qtarget.cli import run as qtarget_cli
from qtarget.config import overrides
from qtarget.config.overrides import check_ranges

IS_1_3 = hydra.__version__.startswith("1.3.")
of_hydra_1_3 = pytest.mark.skipif(not IS_1_3, reason="Hydra 1.4 has the values that a range says")

WRONG: dict[str, tuple[str, str]] = {
    # Hydra 1.3.8 adds binary fractions up: a job too many, or other values
    "a job too many": ("optim.lr=range(0,0.9,0.3)", "optim.lr=0.0,0.3,0.6"),
    "another third value": ("optim.lr=range(0.1,0.5,0.1)", "optim.lr=0.1,0.2,0.3,0.4"),
    "a whole start": ("optim.lr=range(0,1,0.1)", "optim.lr=0.0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"),
    "downwards": ("optim.lr=range(0.9,0,-0.3)", "optim.lr=0.9,0.6,0.3"),
    "by name": ("optim.lr=range(start=0.1,stop=0.5,step=0.1)", "optim.lr=0.1,0.2,0.3,0.4"),
    "with an exponent": ("optim.lr=range(1e-4,5e-4,1e-4)", "optim.lr=0.0001,0.0002,0.0003,0.0004"),
    "spaces": ("optim.lr=range( 0.1, 0.5, 0.1 )", "optim.lr=0.1,0.2,0.3,0.4"),
    "tags": ("optim.lr=tag(a,b,range(0,0.9,0.3))", "optim.lr=0.0,0.3,0.6"),
    "sorted": ("optim.lr=sort(range(0.9,0,-0.3))", "optim.lr=0.3,0.6,0.9"),
    "sorted downwards": ("optim.lr=sort(range(0,0.9,0.3),reverse=true)", "optim.lr=0.6,0.3,0.0"),
    "tagged and sorted": ("optim.lr=tag(a,sort(range(0,0.9,0.3)))", "optim.lr=0.0,0.3,0.6"),
    "shuffled": ("optim.lr=shuffle(range(0,0.9,0.3))", "optim.lr=shuffle(0.0,0.3,0.6)"),
    "shuffled by name": ("optim.lr=shuffle(sweep=range(0,0.9,0.3))", "optim.lr=shuffle(0.0,0.3,0.6)"),
    "added": ("+model.more=range(0,0.9,0.3)", "+model.more=0.0,0.3,0.6"),
    # and sorts whole numbers from where no step leads: 6, 2, −2
    "whole, downwards": ("seed=sort(range(1,10,4),reverse=true)", "seed=9,5,1"),
    "whole, upwards": ("seed=sort(range(9,0,-4))", "seed=1,5,9"),
    "cast": ("optim.lr=float(range(0.1,0.5,0.1))", "optim.lr=0.1,0.2,0.3,0.4"),
}


@of_hydra_1_3
@pytest.mark.parametrize("case", WRONG)
def test_a_range_that_hydra_reads_otherwise_is_refused_with_what_to_write(case: str) -> None:
    text, instead = WRONG[case]
    with pytest.raises(qtarget.QTargetError) as refused:
        check_ranges(["model=tiny", "target=sft,dft", text], multirun=True)
    message = str(refused.value)
    assert f"write {shlex.quote(instead)}. " in message
    given, _, rest = message.removeprefix(f"{text} gives ").partition(" under Hydra")
    former = shlex.split(rest)[-1]  # what earlier runs were made with can be said, too
    assert sorted(given.split(",")) == sorted(_given(text)) == sorted(_given(former))
    assert set(_given(instead)) != set(_given(text))


@pytest.mark.skipif(IS_1_3, reason="1.3.8 has others")
@pytest.mark.parametrize("case", WRONG)
def test_hydra_1_4_has_the_values_that_a_range_says(case: str) -> None:
    text, instead = WRONG[case]
    check_ranges(["model=tiny", text], multirun=True)
    assert sorted(map(float, _given(text))) == sorted(map(float, _given(instead)))


def test_what_is_to_be_written_instead_is_taken() -> None:
    for _, instead in WRONG.values():
        assert _given(instead)
    check_ranges(["optim.lr=shuffle(0.0,0.3,0.6)", "optim.warmup=0.0,0.30000000000000004", "seed=9,5,1"], multirun=True)


RIGHT = [
    "seed=range(3)",
    "seed=range(1,4)",
    "seed=range(10,0,-3)",
    "seed=sort(range(1,4),reverse=true)",
    "seed=shuffle(range(0,5))",
    "seed=tag(a,range(2))",
    "seed=int(range(0.5,4,1.2))",
    "optim.lr=range(0,1,0.25)",
    "optim.lr=range(0.5,3)",
    "optim.lr=range(0,0.3,0.1)",
    "optim.lr=choice(0.1,0.30000000000000004)",
    "name='range(0,0.9,0.3)'",
]


@pytest.mark.parametrize("text", RIGHT)
def test_a_range_that_is_what_it_says_stays(text: str) -> None:
    check_ranges([text, "optim.warmup=0,1"], multirun=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed=range(1,5,0)", "a step other than 0"),
        ("optim.lr=range(0,1,0.0)", "a step other than 0"),
        ("optim.lr=range(0,inf,0.5)", "has finite ends"),
        ("optim.lr=range(0,nan)", "has finite ends"),
        ("seed=range(3,3)", "gives 0 values"),
        ("optim.lr=range(1,0,0.1)", "gives 0 values"),
        ("seed=range(10000000000)", "gives 10000000000 values"),
        ("seed=range(0,2),7", "not within a list"),
        ("optim.betas=[0.9,range(0,2)]", "not within a list"),
    ],
)
def test_a_range_without_an_end_or_a_value_is_refused(text: str, message: str) -> None:
    with pytest.raises(qtarget.QTargetError, match=message):
        check_ranges([text], multirun=True)


@of_hydra_1_3
def test_the_first_wrong_key_of_several_is_named_and_the_last_of_a_key_counts() -> None:
    with pytest.raises(qtarget.QTargetError, match=r"^optim.warmup=range"):
        check_ranges(["seed=range(3)", "optim.warmup=range(0,0.9,0.3)", "optim.lr=0.1,0.2"], multirun=True)
    check_ranges(["optim.lr=range(0,0.9,0.3)", "optim.lr=0.1,0.2"], multirun=True)


@of_hydra_1_3
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("sweeps_itself", []),  # hydra.mode=MULTIRUN of its own
        ("is_swept", ["-m"]),
    ],
)
def test_ranges_of_an_experiment_are_checked(
    name: str, given: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("conf", "experiment")
    folder.mkdir(parents=True)
    mode = "" if given else "  mode: MULTIRUN\n"
    params = "  sweeper:\n    params:\n      optim.lr: range(0.1,0.5,0.1)\n      target: sft,dft\n"
    (folder / f"{name}.yaml").write_text(f"# @package _global_\nhydra:\n{mode}{params}")
    assert qtarget_cli(["train", "model=tiny", f"experiment={name}", *given]) == 2
    assert "write optim.lr=0.1,0.2,0.3,0.4. " in capsys.readouterr().err
    assert [path.name for path in workdir.iterdir()] == ["conf"]
    check_ranges([f"experiment={name}", "optim.lr=0.1"], multirun=bool(given))


@of_hydra_1_3
@pytest.mark.parametrize("given", [["-m"], ["hydra.mode=MULTIRUN"]])
def test_a_wrong_range_makes_no_folder(given: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["train", "model=tiny", "optim.lr=range(0,0.9,0.3)", *given]) == 2
    error = capsys.readouterr().err
    assert "optim.lr=range(0,0.9,0.3) gives 0.0,0.3,0.6,0.8999999999999999 under Hydra" in error
    assert "Traceback" not in error
    assert not any(workdir.iterdir())


def _given(text: str) -> list[str]:
    """What Hydra's own sweeper makes of it."""
    (override,) = OverridesParser.create().parse_overrides([text])
    return list(override.sweep_string_iterator())


def test_a_job_of_a_launcher_composes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told to be one job, so nothing of its configuration can sweep."""
    monkeypatch.delattr(overrides, "compose_config")
    check_ranges(["optim.lr=0.1", "hydra.mode=RUN"], multirun=False)

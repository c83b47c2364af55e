"""A tracker, a launcher, a data format and a verifier are one class and one yaml of a folder outside the repository.

Those of CONTRIBUTING.md are written into an empty folder, as they stand there, and used.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import qtarget
from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config, instantiate
from qtarget.config.identity import config_hash
from qtarget.config.run_config import RunConfig
from qtarget.run.plan import make_plan

CONTRIBUTING = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
SNIPPETS = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", CONTRIBUTING, re.DOTALL))
"""File → what stands in it."""
TINY = ["model=tiny", "trainer.max_steps=1", "trainer.batch_size=4", "trainer.precision=32-true", "eval.kl_prior=false"]
TABBED = ["data=tabbed", "data.source.path=sums.tsv"]


@pytest.fixture
def extended(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that CONTRIBUTING shows, and a file of the data format."""
    for name, text in SNIPPETS.items():
        write(name, text)
    write("sums.tsv", "".join(f"{n}+{n}\t{2 * n}\n" for n in range(12)))
    monkeypatch.syspath_prepend(str(workdir))
    for module in [path.stem for path in workdir.glob("my*.py")]:
        monkeypatch.delitem(sys.modules, module, raising=False)
    return workdir


def write(name: str, text: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def own(module: str, code: str, **yaml: str) -> None:
    """A module of the user's, and yaml files by group, each called `own`."""
    write(f"{module}.py", code)
    for group, text in yaml.items():
        write(f"conf/{group.replace('__', '/')}/own.yaml", text)


def refused(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert qtarget_cli(["train", *TINY, *overrides]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_each_extension_is_shown_in_about_ten_lines() -> None:
    modules = {name: text for name, text in SNIPPETS.items() if name.endswith(".py")}
    assert modules.keys() >= {"mytracker.py", "mylauncher.py", "myformat.py", "myverifier.py"}
    for name, text in modules.items():
        body = text[text.index("class ") :]
        assert len([line for line in body.splitlines() if line.strip()]) <= 10, name


def test_a_run_of_the_users_own_data_is_sent_to_the_users_own_tracker(extended: Path) -> None:
    assert qtarget_cli(["train", *TINY, *TABBED, "tracker=lines", "name=mine", "eval.problems_in_training=null"]) == 0
    (folder,) = extended.glob("outputs/runs/*/")
    recorded = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [
        f"mine,{line['step']},{key},{value}"
        for line in recorded
        for key, value in line.items()
        if key not in ("step", "time")
    ]
    assert (extended / "all_runs.csv").read_text().splitlines() == expected
    assert len(expected) > 10
    assert json.loads((folder / "result.json").read_text())["rows"]["train"] == 9


def test_rows_of_the_users_own_format_are_what_its_file_holds(extended: Path) -> None:
    plan = make_plan(RunConfig.compose([*TINY, *TABBED]))
    held = [(row.prompt[-1]["content"], row.completion) for row in plan.prepared.heldout_rows]
    assert held == [("0+0", "0"), ("4+4", "8"), ("8+8", "16")]
    assert [example.row for example in plan.prepared.train] == [1, 2, 3, 5, 6, 7, 9, 10, 11]


def test_the_identity_of_a_run_follows_the_content_of_the_users_own_file(extended: Path) -> None:
    def identity() -> str:
        return config_hash(compose_config("train", [*TINY, *TABBED]))

    before, text = identity(), (extended / "sums.tsv").read_text()
    (extended / "sums.tsv").write_text(text.replace("\t8\n", "\t9\n"))
    assert identity() != before
    (extended / "sums.tsv").write_text(text)
    assert identity() == before


def test_the_users_own_source_is_a_benchmark_and_a_part_of_a_mixture(extended: Path) -> None:
    write("conf/data/source/tabbed.yaml", "_target_: myformat.Tabbed\npath: sums.tsv\n")
    mixed = ["data=mix", "+data/source@data.source.parts.a=tabbed", "+data/source@data.source.parts.b=arithmetic"]
    kept = ["+data/source@eval.retention.source=tabbed", "eval.retention.rows=2"]
    plan = make_plan(RunConfig.compose([*TINY, *mixed, *kept, "data.rows=6", "data.heldout_rows=4"]))
    assert len(plan.prepared.train) == 6
    assert [example.row for example in plan.benchmarks.retention] == [0, 4]


def test_a_launcher_of_the_users_is_given_the_jobs_of_a_multirun(
    extended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swept = ["train", "-m", "hydra/launcher=listed", *TINY, *TABBED, "target=sft,dft"]
    assert qtarget_cli(swept) == 1
    commands = [shlex.split(line) for line in (extended / "jobs.txt").read_text().splitlines()]
    assert ["target=sft" in command for command in commands] == [True, False]
    said = capsys.readouterr().err
    assert said.count("waits in jobs.txt") == 2
    assert "traceback" not in said  # nothing has run, so there is none
    assert qtarget_cli(commands[0][3:]) == 0  # behind python -m qtarget
    assert qtarget_cli(swept) == 1
    (left,) = (extended / "jobs.txt").read_text().splitlines()
    assert "target=dft" in left
    out = capsys.readouterr()
    assert out.out.count("finished  ") == 2  # the job itself, and the launcher that met it
    assert out.err.count("waits in jobs.txt") == 1


DEFAULTS = "defaults: [{reliance: one}, {residual: self}, {weight: one}, _self_]\nnormalize: tokens\n"
COMMANDS = (["show"], ["lens"], ["train", *TINY])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_design_whose_yaml_names_no_class_is_refused_with_the_classes_there_are(
    workdir: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    write("conf/target/unnamed.yaml", DEFAULTS)
    assert qtarget_cli([*command, "target=unnamed"]) == 2
    assert capsys.readouterr().err.strip() == (
        "qtarget: target=unnamed: conf/target/unnamed.yaml has no _target_; write one of "
        "qtarget.math.target.Mixture, Anchored, Signed, Induced"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_field_that_the_chosen_part_of_a_design_lacks_names_its_fields_and_the_option_that_has_it(
    workdir: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    write("conf/target/mixed_up.yaml", f"{DEFAULTS}_target_: qtarget.math.target.Mixture\nreliance:\n  alpha: 0.5\n")
    assert qtarget_cli([*command, "target=mixed_up"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("qtarget: unknown key 'target.reliance.alpha'. Allowed: value. Options with alpha: power, ")
    assert "write `override reliance: power` into the defaults" in err


PART = "from qtarget.record.trackers import NoTracker\nfrom qtarget.launch.launcher import JobsLauncher\n"
LAUNCHER = PART + "class Own(JobsLauncher):\n    def {}\n"
TARGET = "_target_: badpart.Own\n"
BAD: dict[str, tuple[str, str, str, str]] = {
    "no module": (
        "tracker",
        "",
        "_target_: nowhere.Own\n",
        "nowhere.Own can't be imported (No module named 'nowhere')",
    ),
    "no class": ("tracker", "", TARGET, "badpart.Own can't be imported (module 'badpart' has no attribute 'Own')"),
    "broken module": ("tracker", "import nolibrary", TARGET, "badpart.Own can't be imported (No module named 'nolib"),
    "no target": (
        "tracker",
        "",
        "path: x\n",
        "conf/tracker/own.yaml has no _target_; write _target_: MODULE.CLASS, yours or one of",
    ),
    "field": ("tracker", "class Own: ...", f"{TARGET}x: 1\n", "badpart.Own can't be made of its fields: TypeError"),
    "no methods": ("tracker", "class Own: ...", TARGET, "tracker: badpart.Own has no method start; it needs start("),
    "arguments": (
        "tracker",
        PART + "class Own(NoTracker):\n    def log(self, metrics): ...",
        TARGET,
        "tracker: badpart.Own.log is called as log(step, metrics) and takes (metrics)",
    ),
    "no run": ("hydra__launcher", PART + "class Own(JobsLauncher): ...", TARGET, "abstract method 'run'"),
    "run": (
        "hydra__launcher",
        LAUNCHER.format("run(self): ..."),
        TARGET,
        "Own.run is called as run(jobs) and takes ()",
    ),
    "outcomes": (
        "hydra__launcher",
        LAUNCHER.format("run(self, jobs): return []"),
        TARGET,
        "badpart.Own.run returns a list with the qtarget.launch.outcome.Outcome of each of 1 jobs, got list",
    ),
    "no launcher": (
        "hydra__launcher",
        "class Own:\n    def run(self, jobs): ...",
        TARGET,
        "badpart.Own is no launcher: derive it from qtarget.launch.launcher.JobsLauncher",
    ),
    "launcher's module": ("hydra__launcher", "", TARGET, "badpart.Own can't be imported"),
    "launcher's yaml": ("hydra__launcher", "", "path: x\n", "hydra.launcher names no class"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_class_of_the_users_lacks_is_named_before_anything_runs(
    case: str, extended: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    group, code, yaml, expected = BAD[case]
    own("badpart", code, **{group: yaml})
    monkeypatch.delitem(sys.modules, "badpart", raising=False)
    chosen = ["tracker=own", "trainer=dry"] if group == "tracker" else ["-m", "hydra/launcher=own", "target=sft"]
    said = refused(capsys, *TABBED, *chosen)
    assert expected.replace("'run'", "") in said.replace("'run'", "").replace("method run", "method ")
    assert not list(extended.glob("outputs/runs/*/checkpoint"))


ROWS = "class Own:\n    def rows(self, {}): return {}\n"
DEMONSTRATION = "from qtarget.data.example import Demonstration\n"
BAD_ROWS: dict[str, tuple[str, str]] = {
    "no rows": ("class Own: ...", "data.source: badpart.Own has no method rows; it needs rows(split, count)"),
    "arguments": (ROWS.format("split", "[]"), "badpart.Own.rows is called as rows(split, count) and takes (split)"),
    "nothing": (
        ROWS.format("split, count", "None"),
        "badpart.Own.rows('train', None) must give a list of qtarget.data.example.Demonstration, got NoneType",
    ),
    "dict": (
        ROWS.format("split, count", "[{}]"),
        "row 0 of its list: a row is a qtarget.data.example.Demonstration, got dict",
    ),
    "end": (
        DEMONSTRATION + ROWS.format("split, count", "[Demonstration([{'role': 'user', 'content': 'a'}], row=0)]"),
        "row 0 of its list: messages must end with the assistant's answer, and ends with role 'user'",
    ),
    "role": (
        DEMONSTRATION + ROWS.format("split, count", "[Demonstration([{'role': 'bot', 'content': 'a'}], row=0)]"),
        "messages[0] has the unknown role 'bot'; known: system",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_what_is_wrong_with_rows_of_the_users_own_source_is_said(
    case: str, extended: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, expected = BAD_ROWS[case]
    own("badpart", code, data="defaults: [common@_here_: base, noise: none, _self_]\nsource: {_target_: badpart.Own}\n")
    monkeypatch.delitem(sys.modules, "badpart", raising=False)
    assert expected in refused(capsys, "data=own", "trainer=dry")


def test_a_source_of_the_users_gives_no_more_rows_than_are_asked_for(
    extended: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (extended / "myformat.py").read_text()
    (extended / "myformat.py").write_text(source.replace("[:count]", ""))
    assert "rows('train', 2) gave 9 rows: give the first 2" in refused(capsys, *TABBED, "data.rows=2", "trainer=dry")


def test_fields_of_the_users_own_tracker_mean_what_it_says(extended: Path) -> None:
    """Not what those of the same name mean to W&B's, which are texts, a list of texts and a flag."""
    write("conf/tracker/own.yaml", "_target_: mytracker.Own\nproject: 7\ntags: none\nartifact: models\n")
    cfg = RunConfig.compose([*TINY, *TABBED, "tracker=own", "checkpoint.save=false"])
    values: Any = cfg.tracker
    assert (values["project"], values["tags"], values["artifact"]) == (7, "none", "models")


# Verifiers

ROWS_TO_JUDGE = "".join(
    f'{{"prompt": "half of {n}?", "completion": "{n / 2}", "answer": {n / 2}}}\n' for n in range(24)
)
JUDGED = ["data=jsonl", "data.source.path=halves.jsonl", "data.source.heldout_share=0.5"]
NEAR = [*JUDGED, "+data/verifier@data.source.verifier=near"]


@pytest.fixture
def judged(extended: Path) -> Path:
    write("halves.jsonl", ROWS_TO_JUDGE)
    return extended


def test_rows_are_judged_by_the_users_own_verifier(judged: Path) -> None:
    plan = make_plan(RunConfig.compose([*TINY, *NEAR]))
    row = plan.prepared.heldout_rows[0]
    answer, entry = float(row.completion), row.entry or {}
    assert qtarget.judge(f"<think>{answer - 1}</think>#### {answer + 0.4}", entry).correct
    assert not qtarget.judge(f"<think>{answer}</think>#### {answer + 0.6}", entry).correct
    assert not qtarget.judge("a half", entry).correct
    strict = make_plan(RunConfig.compose([*TINY, *NEAR, "data.source.verifier.within=0.1"])).prepared.heldout_rows
    assert not qtarget.judge(f"#### {answer + 0.4}", strict[0].entry or {}).correct


def test_the_scores_of_a_run_are_those_of_the_users_own_verifier(judged: Path) -> None:
    """An odd one, under which some answers of an untrained model are right and some wrong."""
    own(
        "myodd",
        "from qtarget.data.verify import Verdict\n"
        "class Own:\n"
        "    def __call__(self, completion, entry):\n"
        "        return Verdict(sum(map(ord, completion)) % 2 == 1, completion.upper(), 0.25)\n",
        data__verifier="_target_: myodd.Own\n",
    )
    odd = [*JUDGED, "+data/verifier@data.source.verifier=own", "data.source.trust_scorer=true", "eval.new_tokens=3"]
    drawn = ["eval.temperature=5", "eval.samples=8"]
    assert qtarget_cli(["train", *TINY, *odd, *drawn, "trainer.eval_every=0"]) == 0
    (folder,) = judged.glob("outputs/runs/*/")
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {sample["correct"] for sample in samples} == {True, False}
    assert all(sample["correct"] == (sum(map(ord, sample["answer"])) % 2 == 1) for sample in samples)
    assert all(sample["final"] == sample["answer"].upper() for sample in samples)
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert metrics["test/accuracy"] == pytest.approx(sum(sample["correct"] for sample in samples) / len(samples))
    assert metrics["test/score"] == 0.25


def test_a_benchmark_is_judged_by_the_users_own_verifier(judged: Path) -> None:
    bench = ["+data/source@eval.benchmarks.halves.source=jsonl", "eval.benchmarks.halves.source.path=halves.jsonl"]
    near = [*bench, "+data/verifier@eval.benchmarks.halves.source.verifier=near"]
    (*_, row) = make_plan(RunConfig.compose([*TINY, *TABBED, *near])).benchmarks.benchmarks["halves"]
    answer = float(row.completion)
    assert [qtarget.judge(str(answer + off), row.entry or {}).correct for off in (0.4, 0.6)] == [True, False]


def test_the_users_own_verifier_is_part_of_a_runs_identity(judged: Path) -> None:
    near, exact = [*TINY, *NEAR], [*TINY, *JUDGED, "data.source.verifier=exact"]
    changed = [*near, "data.source.verifier.within=0.1"]
    hashes = {config_hash(compose_config("train", given)) for given in (near, exact, changed)}
    assert len(hashes) == 3


def test_no_row_of_data_names_code(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path of a module is no verifier, whether an entry has it or the command line, and nothing is imported."""
    write("mytrap.py", "raise SystemExit('imported')")
    entry = {"verifier": "mytrap.Own", "answer": "1"}
    with pytest.raises(qtarget.QTargetError, match="must be one of reasoning_gym, math, choice, exact, instruct"):
        qtarget.judge("1", entry)
    with pytest.raises(qtarget.QTargetError, match="must be one of"):
        qtarget.judge("1", {**entry, "verifier": {"_target_": "mytrap.Own"}})
    said = refused(capsys, *JUDGED, "data.source.verifier=mytrap.Own", "trainer=dry")
    assert "one of None, math, choice, exact, or a class of your own, verifier: {_target_: MODULE.CLASS}" in said
    write("halves.jsonl", ROWS_TO_JUDGE.replace('"answer"', '"verifier": "mytrap.Own", "answer"'))
    plan = make_plan(RunConfig.compose([*TINY, *JUDGED, "data.source.verifier=exact"]))
    assert {row.entry["verifier"] for row in plan.prepared.heldout_rows if row.entry} == {"exact"}
    assert "mytrap" not in sys.modules


VERDICT = (
    "from qtarget.data.verify import Verdict\nclass Own:\n    def __call__(self, completion, entry):\n        {}\n"
)
BAD_VERIFIERS: dict[str, tuple[str, str]] = {
    "no call": ("class Own: ...", "verifier must be one of None, math, choice, exact, or a class of your own"),
    "arguments": (
        "class Own:\n    def __call__(self, text): ...",
        "data.source.verifier: badpart.Own.__call__ is called as __call__(completion, entry) and takes (text)",
    ),
    "no verdict": (VERDICT.format("return True"), "badpart.Own must give a qtarget.data.verify.Verdict, got bool"),
    "marks": (VERDICT.format("return Verdict(True, 'a', 7.0)"), "badpart.Own gave 7.0 marks: partial lies in [0, 1]"),
    "fails": (
        VERDICT.format("return Verdict(float(completion) == float(entry['answer']), completion)"),
        "badpart.Own failed on the completion '': ValueError: could not convert string to float: ''",
    ),
    "lacks": (VERDICT.format("return Verdict(True, entry['solution'])"), "KeyError: 'solution'. A verifier gives a"),
    "all right": (VERDICT.format("return Verdict(True, completion)"), "the scorer of badpart.Own gives full marks to"),
}


@pytest.mark.parametrize("case", BAD_VERIFIERS)
def test_what_is_wrong_with_a_verifier_of_the_users_is_said_before_training(
    case: str, judged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, expected = BAD_VERIFIERS[case]
    own("badpart", code, data__verifier="_target_: badpart.Own\n")
    monkeypatch.delitem(sys.modules, "badpart", raising=False)
    assert expected in refused(capsys, *JUDGED, "+data/verifier@data.source.verifier=own", "trainer=dry")


@pytest.mark.parametrize("fields", [{}, {"prompt": "prompt", "completion": "completion", "answer": "answer"}])
def test_rows_read_from_python_are_judged_by_a_verifier_object(judged: Path, fields: dict[str, str]) -> None:
    """By the schema of the file, and by names of columns."""
    near = instantiate({"_target_": "myverifier.Near", "within": 1})
    rows = qtarget.read_rows("halves.jsonl", verifier=near, **fields)
    assert len(rows) == 24
    assert [qtarget.judge(said, rows[6].entry or {}).correct for said in ("3.9", "4.1")] == [True, False]

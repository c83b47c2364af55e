"""A run's identity: finished runs of an earlier build stay finished, those whose numbers were mended are run anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtarget.compare.command import compare
from qtarget.config import versions
from qtarget.config.composing import compose_config, config_container
from qtarget.config.identity import config_hash, job_hash
from qtarget.config.versions import ResultChange

OWN = '{"prompt": "say hi", "completion": "hi"}\n{"prompt": "say ho", "completion": "ho"}\n'
TEACHER = ["reference@references.teacher=frozen", "references.teacher.name=tiny"]
PART = "+data/source@data.source.parts"
# Folder names made by commit 08cbad9.
HASHES = {
    "b41e80f2624a": [],
    "5d32033ab3b3": ["model=tiny"],
    "f3110e699be7": ["model=tiny", "target=dft", "data.noise.rate=0.4", "seed=2"],
    "a707ce238221": ["model=tiny", "target=target_sft", *TEACHER],
    "0c76affb53a3": ["model=tiny", "target=asft", "reference@references.prior=cached"],
    "edbbb6ec6891": ["model=tiny", "model/adapter=lora", "reference@references.prior=adapter_off"],
    "374e206c6495": [
        "model=tiny",
        "data=hub",
        "data.source.path=some/set",
        "data.source.prompt=q",
        "data.source.completion=a",
    ],
    "8ea2734516a5": ["model=tiny", "data=jsonl", "data.source.path=rows.jsonl"],
    "143a8e645452": [
        "model=tiny",
        "data=mix",
        f"{PART}.a=arithmetic",
        f"{PART}.b=jsonl",
        "data.source.parts.b.path=rows.jsonl",
    ],
    "964f03ae518f": ["model=tiny", "data=instruct"],
    "eac082041472": ["model=tiny", "data.packing=128", "trainer.accumulate=2", "optim=equal_norm"],
}

MENDED = {
    "ed1b991ca3c8": ["model=tiny", "data=gsm8k"],
    "91e3b89c8afe": ["experiment=paper/openr1_math_15k_qwen2_5_math_7b"],
    "b9945b272e32": ["model=tiny", "eval=math"],
}
"""Those of 08cbad9 whose answers to mathematics are judged otherwise now."""


SMALLER = ["checkpoint.dtype=bfloat16"]


@pytest.mark.parametrize(
    ("earlier", "given", "is_new"),
    [
        ("c89f7fc1fc61", ["model=tiny", *SMALLER], True),
        ("5debc3bd1585", ["experiment=demo", "target=kd", *SMALLER], True),
        ("cb2a350a2902", ["model=tiny", "model/adapter=lora", "model.dtype=bfloat16", *SMALLER], True),
        ("82c0ab4a98ea", ["model=tiny", *SMALLER, "checkpoint.save=false"], False),
        ("cdc41c31ac7c", ["model=tiny", "model.dtype=bfloat16", "optim.allow_bf16_rounding=true", *SMALLER], False),
        ("e886ee2b4cee", ["model=tiny", "model.dtype=bfloat16", "optim.allow_bf16_rounding=true"], False),
    ],
)
def test_runs_tested_before_their_checkpoint_was_rounded_are_new(earlier: str, given: list[str], is_new: bool) -> None:
    """The names are those of commit 398c8ac, which tested the weights as they were trained."""
    cfg = compose_config("train", given)
    assert ("rounded" in versions.versions(config_container(cfg))) == is_new
    assert (config_hash(cfg) != earlier) == is_new


def test_what_is_left_of_the_optimizer_changes_no_run(workdir: Path) -> None:
    """dff033e2aa24 is the name of commit 398c8ac for checkpoint.optimizer=false, which was no default then."""
    kept, not_kept = (
        compose_config("train", ["model=tiny", f"checkpoint.optimizer={flag}"]) for flag in ("true", "false")
    )
    for runs, name in ((["dff033e2aa24"], "dff033e2aa24"), (["dff033e2aa24", "5d32033ab3b3"], "5d32033ab3b3")):
        assert config_hash(kept) == config_hash(not_kept) == job_hash(kept) == "5d32033ab3b3"
        for run in runs:
            Path("outputs/runs", run).mkdir(parents=True, exist_ok=True)
            Path("outputs/runs", run, "result.json").touch()
        assert job_hash(not_kept) == name


@pytest.mark.parametrize("earlier", MENDED)
def test_runs_judged_by_another_comparison_of_mathematics_are_new(earlier: str) -> None:
    cfg = compose_config("train", MENDED[earlier])
    assert versions.versions(config_container(cfg)).get("verdict") == 2
    assert config_hash(cfg) != earlier


@pytest.mark.parametrize(
    ("overrides", "mends"),
    [
        (["data=gsm8k", "data.heldout_rows=0"], set()),
        (["data=jsonl", "data.source.path=rows.jsonl", "data.source.verifier=math"], {"verdict"}),
        (["data=jsonl", "data.source.path=rows.jsonl", "data.source.verifier=exact"], set()),
        (["data=m23k", "eval=medical"], {"thought", "choice"}),
        (["data=medqa"], {"choice"}),
        (["data=gsm_symbolic"], set()),
    ],
)
def test_another_verdict_concerns_runs_that_ask_for_it(overrides: list[str], mends: set[str], workdir: Path) -> None:
    Path("rows.jsonl").write_text(OWN)
    assert set(versions.versions(config_container(compose_config("train", ["model=tiny", *overrides])))) == mends


TWO = ["trainer.devices=2", "trainer.strategy=fsdp2"]


def test_the_same_rows_a_step_are_the_same_run_on_any_devices() -> None:
    """The hash of one device is that of 08cbad9, as eac082041472 above."""
    tiny = ["model=tiny", "data.packing=128", "optim=equal_norm"]
    for given in (
        ["trainer.accumulate=2"],
        TWO,
        ["trainer.devices=2"],
        ["trainer.num_nodes=2"],
    ):
        assert config_hash(compose_config("train", [*tiny, *given])) == "eac082041472"
    for given in ([], [*TWO, "trainer.accumulate=2"], [*TWO, "trainer.batch_size=8"]):
        assert config_hash(compose_config("train", [*tiny, *given])) != "eac082041472"


def test_with_rows_per_step_micro_batches_may_be_any() -> None:
    spread = ([], ["trainer.batch_size=4"], [*TWO, "trainer.batch_size=8"], ["trainer.devices=4"])
    names = {config_hash(compose_config("train", ["trainer.rows_per_step=64", *given])) for given in spread}
    assert len(names) == 1
    assert names != {config_hash(compose_config("train", ["trainer.rows_per_step=128"]))}


def test_a_design_that_looks_at_micro_batches_is_another_run_on_other_devices() -> None:
    """By its own nature, by a field, and by the default of a field."""
    for target, is_one in (
        (["target=sft", "target/reliance=random_drop"], False),
        (["target=cayley_trans"], False),
        (["target=cayley_trans", "target.reliance.scope=step"], True),
    ):
        one, two, rows = (
            config_hash(compose_config("train", [*target, *given]))
            for given in (["trainer.accumulate=2"], TWO, [*TWO, "trainer.rows_per_step=32"])
        )
        assert (one == two) == is_one, target
        assert is_one or two == rows  # of which nothing is left out then


def test_runs_of_earlier_builds_on_several_devices_are_found(workdir: Path) -> None:
    """The name is that of commit 5844f2b, for which devices counted."""
    cfg, earlier = compose_config("train", ["model=tiny", *TWO]), "e4b5cff2201e"
    Path("outputs/runs", earlier).mkdir(parents=True)
    assert job_hash(cfg) == config_hash(cfg)
    Path("outputs/runs", earlier, "result.json").touch()
    assert job_hash(cfg) == earlier


@pytest.mark.parametrize("expected", HASHES)
def test_runs_of_an_earlier_build_keep_their_folders(expected: str, workdir: Path) -> None:
    Path("rows.jsonl").write_text(OWN)
    assert config_hash(compose_config("train", HASHES[expected])) == expected


def test_problems_that_were_others_in_every_process_make_new_runs() -> None:
    """Only for the tasks concerned: the hash is that of 08cbad9 without the versions."""
    for task, version in (("ransom_note", {"generated": 2}), ("chain_sum", {})):
        cfg = compose_config("train", ["model=tiny", "data=reasoning_gym", f"data.source.task={task}"])
        assert versions.versions(config_container(cfg)) == version
    mixed = ["model=tiny", "data=reasoning_gym", "data.source.task=null", "data.source.tasks={gcd: 1, word_ladder: 2}"]
    assert "generated" in versions.versions(config_container(compose_config("train", mixed)))


def test_only_runs_that_divide_by_a_truncated_mass_are_new() -> None:
    for given, version in (
        (["target=kd_truncated", "target.normalize=weight_sum"], {"mass": 2}),
        (["target=kd_truncated"], {}),
        (["target=kd_support", "target.normalize=weight_sum"], {}),
        (["target=kd", "target.normalize=weight_sum"], {}),
    ):
        assert versions.versions(config_container(compose_config("train", ["model=tiny", *given]))) == version


def test_a_mend_concerns_some_runs_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    change = ResultChange("rows", 2, "made up", lambda config: config["data"]["rows"] == 17)
    cfg, other = (compose_config("train", ["model=tiny", f"data.rows={rows}"]) for rows in (17, 18))
    before, beside = config_hash(cfg), config_hash(other)
    monkeypatch.setattr(versions, "RESULT_CHANGES", (*versions.RESULT_CHANGES, change))
    assert config_hash(cfg) != before
    assert config_hash(other) == beside


def test_a_later_key_counts_only_where_it_changes_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions.UNCHANGED, "trainer", {"later": (None, "as before")})
    plain = config_hash(compose_config("train", ["model=tiny"]))
    same, other = (
        config_hash(compose_config("train", ["model=tiny", f"+trainer.later={value}"])) for value in ("'as before'", 3)
    )
    assert same == plain
    assert other != plain


def test_tables_name_the_runs_whose_numbers_were_mended_since(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        versions,
        "RESULT_CHANGES",
        (ResultChange("rows", 2, "rows are read as text", lambda c: c["data"]["rows"] == 17),),
    )
    for name, rows, mends in (("old", 17, None), ("new", 17, {"rows": 2}), ("plain", 18, None)):
        folder = Path("outputs/runs", name)
        folder.mkdir(parents=True)
        metrics = {"test/accuracy": 0.5, "test/nll": 1.0}
        result = {"name": name, "status": "finished", "metrics": metrics, "seed": 0} | (
            {"mends": mends} if mends else {}
        )
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "config.yaml").write_text(f"data: {{rows: {rows}}}\n")
    assert compare(["outputs/runs"], format="md") == 0
    written = capsys.readouterr().out
    assert "(rows are read as text): old. The same command makes a new run of each." in written
    assert written.count("earlier build") == 2
    assert "old · earlier build" in written
    assert "rows are read as text" in Path("outputs/runs/report.html").read_text()


@pytest.mark.parametrize(
    ("row", "is_new"),
    [
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}', True),
        ('{"prompt": "a", "completion": "b", "tools": [{"name": "f"}]}', True),
        ('{"prompt": "a", "completion": "b", "weight": 0.5}', True),
        ('{"instruction": "a", "output": "b", "history": [["c", "d"]]}', True),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}]}', False),
        ('{"prompt": "the weight of tools, by name", "completion": "b", "name": "x"}', False),
        ('{"prompt": "a", "completion": "b", "system": null, "tools": []}', False),
    ],
)
def test_rows_with_keys_that_were_dropped_make_new_runs(row: str, is_new: bool, workdir: Path) -> None:
    Path("rows.jsonl").write_text(row + "\n")
    cfg = compose_config("train", ["model=tiny", "data=jsonl", "data.source.path=rows.jsonl"])
    assert ("rows" in versions.versions(config_container(cfg))) is is_new


TALK = '"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'


@pytest.mark.parametrize("data", ["files", "jsonl", "hub"])
@pytest.mark.parametrize(
    ("row", "is_new"),
    [
        (f'{{{TALK}, "functions": [{{"name": "f"}}]}}', True),
        (f'{{{TALK}, "functions": []}}', False),
        ('{"prompt": "\\"functions\\": []", "completion": "b"}', False),
        ('{"prompt": "a", "completion": "b", "functions": [{"name": "f"}]}', False),
    ],
)
def test_rows_of_messages_whose_functions_were_dropped_make_new_runs(
    row: str, is_new: bool, data: str, workdir: Path
) -> None:
    Path("rows.jsonl").write_text(row + "\n")
    cfg = compose_config("train", ["model=tiny", f"data={data}", "data.source.path=rows.jsonl"])
    assert ("functions" in versions.versions(config_container(cfg))) is is_new
    named = compose_config(
        "train", ["model=tiny", "data=files", "data.source.path=rows.jsonl", "data.source.messages=m"]
    )
    assert "functions" not in versions.versions(config_container(named))


@pytest.mark.parametrize("data", ["files", "jsonl"])
@pytest.mark.parametrize(
    ("row", "is_new"),
    [
        (f'{{{TALK[:-2]}, "span_weights": [[0, 1, 2]]}}]}}', True),
        (f'{{{TALK[:-2]}, "span_weights": []}}]}}', False),
        (f'{{{TALK}, "span_weights": [[0, 1, 2]]}}', False),
    ],
)
def test_spans_of_messages_that_were_ignored_make_new_runs(row: str, is_new: bool, data: str, workdir: Path) -> None:
    Path("rows.jsonl").write_text(row + "\n")
    given = ["model=tiny", f"data={data}", "data.source.path=rows.jsonl"]
    for more, expected in (([], False), (["data.source.unknown=ignore"], is_new)):
        cfg = compose_config("train", [*given, *more])
        assert ("spans" in versions.versions(config_container(cfg))) is expected


@pytest.mark.parametrize("data", ["files", "hub"])
@pytest.mark.parametrize(
    ("row", "is_new"),
    [
        (f'{{{TALK}, "span_weights": [[0, 1, 2]]}}', True),
        (f'{{{TALK}, "span_weights": []}}', False),
        (f'{{{TALK[:-2]}, "span_weights": [[0, 1, 2]]}}]}}', False),
    ],
)
def test_spans_beside_a_column_of_messages_make_new_runs(row: str, is_new: bool, data: str, workdir: Path) -> None:
    Path("rows.jsonl").write_text(row + "\n")
    given = ["model=tiny", f"data={data}", "data.source.path=rows.jsonl"]
    for more, expected in (([], False), (["data.source.messages=messages"], is_new)):
        cfg = compose_config("train", [*given, *more])
        assert ("columns" in versions.versions(config_container(cfg))) is expected


def test_cut_prompts_that_are_taught_make_new_runs() -> None:
    weight, cut = "data.prompt_weight=0.5", "data.truncation=cut"
    for given, expected in (([], False), ([weight], False), ([cut], False), ([weight, cut], True)):
        cfg = compose_config("train", ["model=tiny", *given])
        assert ("cut" in versions.versions(config_container(cfg))) is expected


def test_who_prepares_the_data_and_where_it_is_kept_is_no_part_of_a_run() -> None:
    plain, other = (
        config_hash(compose_config("train", ["model=tiny", *more]))
        for more in ([], ["data.keep=true", "data.workers=3"])
    )
    assert plain == other == "5d32033ab3b3"


def test_other_seeds_of_generated_problems_make_another_run_than_they_did() -> None:
    def parts(*given: str) -> dict[str, int]:
        return versions.versions(config_container(compose_config("train", ["model=tiny", *given])))

    assert "seeds" not in parts("data=arithmetic")
    assert "seeds" not in parts("data=instruct", "data.source.seed=1")
    assert parts("data=arithmetic", "data.source.seed=1")["seeds"] == 2

"""The benchmark suite, at sizes too small to measure anything: every part runs, and counts what it says it counts."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qtarget.data.batch import Batch
from qtarget.errors import QTargetError
from qtarget.math.loss import IGNORE
from qtarget.model import provide

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = ("model=tiny",)

pytestmark = [
    pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks stay in the checkout"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """The tiny model as a folder that other people's trainers load."""
    source = provide.resolve("tiny")
    tokenizer = provide.load_tokenizer(source)
    provide.load_policy(source, len(tokenizer)).lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_table_has_the_columns_of_all_its_rows() -> None:
    from table import markdown

    rows = [{"name": "sft", "ratio": 1.0}, {"name": "dft", "ratio": 1.2345, "aim": "≤ 1.1"}]
    assert markdown(rows).splitlines() == [
        "| name | ratio | aim |",
        "| --- | ---: | --- |",
        "| sft | 1.00 | – |",
        "| dft | 1.23 | ≤ 1.1 |",
    ]


def test_a_section_replaces_its_own_and_keeps_the_others() -> None:
    from table import Section, merged

    def section(part: str, value: int) -> Section:
        return Section(part, "title", [("caption", [{"value": value}])])

    text = ""
    for part, value in (("c", 1), ("a", 2), ("c", 3)):
        text = merged(text, section(part, value))
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## (a) title", "## (c) title"]
    assert "| 2 |" in text
    assert "| 3 |" in text
    assert "| 1 |" not in text
    assert merged(text, section("c", 3)) == text


def test_a_ratio_is_the_median_of_its_rounds() -> None:
    from timing import ratio

    assert ratio({"mine": [2.0, 6.0, 4.0], "base": [1.0, 1.0, 4.0]}, "mine", "base") == 2.0


def test_operations_of_a_step_against_a_count_by_hand() -> None:
    """Rows of 3 and 5 real tokens, the shorter one padded by a token that also ends turns."""
    from rate import flops

    pad, width, vocab = 7, 4, 10
    config = SimpleNamespace(
        num_hidden_layers=1, num_attention_heads=2, head_dim=3, hidden_size=width, vocab_size=vocab
    )
    norm, matrix = torch.zeros(width), torch.zeros(width, width)
    layers = SimpleNamespace(parameters=lambda: iter([matrix, norm]))
    lm = SimpleNamespace(config=config, get_decoder=lambda: SimpleNamespace(layers=layers))
    ids = torch.tensor([[1, 2, pad, pad, pad], [1, 2, 3, 4, 5]])
    labels = torch.full((2, 5), IGNORE)
    labels[0, 1], labels[1, 2] = pad, 4  # so row 0's token of index 2 is no padding
    found = flops(lm, Batch(ids, labels, {}, label_indices=torch.full((2, 5), -1), real_tokens=8), pad)
    assert found.trunk == 6 * 16 * 8
    assert found.attention == 6 * 1 * 2 * 3 * (3**2 + 5**2)
    assert found.head == 6 * 2 * width * vocab
    assert found.total == found.trunk + found.attention + found.head


@pytest.mark.slow
def test_the_output_layer() -> None:
    import layer

    for rows in (
        layer.measure(8, "bf16", 1, compiled=False, memory=False),
        layer.measure_fused(8, "cpu", 1, compiled=False),
    ):
        assert rows[0]["way"] == layer.PLAIN
        assert rows[0]["time ratio"] == 1.0
        assert {"sft", "dft"} < {row["way"] for row in rows}


@pytest.mark.slow
def test_steps_of_variants() -> None:
    import steps

    names = ["sft", "dft", "asft, live prior", "target_sft, live teacher"]
    rows = steps.measure(steps.Rows("arithmetic", 2), rounds=1, names=names, more=TINY)
    assert [row["variant"] for row in rows] == names
    assert rows[0]["ratio"] == 1.0


@pytest.mark.slow
def test_full_fine_tunings_share_a_policy_and_train_it() -> None:
    import steps

    made = steps.all_trained(["sft", "dft"], (*steps.Rows("arithmetic", 2).overrides, *TINY))
    policy = made["sft"].module.policy
    before = [parameter.clone() for parameter in policy.parameters()]
    made["dft"]()
    assert made["dft"].module.policy is policy
    assert any(not torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qtarget sft", "TRL SFTTrainer, dft", "TRL DistillationTrainer"])
def test_contenders_train_on_the_same_tokens(name: str, tiny_folder: Path) -> None:
    pytest.importorskip("trl")
    import peers

    more = ("data=arithmetic", "model=path", f"model.name={tiny_folder}")
    (row,) = peers.measure([name], steps=2, more=more)
    assert row["trainer"] == name
    assert float(row["tokens/s"]) > 0


@pytest.mark.slow
def test_a_contender_that_supervises_other_tokens_is_refused() -> None:
    pytest.importorskip("trl")
    import peers
    from ground import Clock

    with pytest.raises(QTargetError, match="supervised"):
        peers._check_same_tokens("other", Clock([1.0], {7}), 8)


@pytest.mark.slow
def test_a_sweep_runs_through_the_command_line() -> None:
    import sweep

    small = sweep.Sweep(targets=("asft",), rates=("1e-5",), rows=4, batch_size=2, steps=1)
    (row,) = sweep.measure(small, ["frozen"], ("model=tiny", "data=arithmetic"))
    assert row["runs"] == 1


@pytest.mark.slow
def test_rate_and_breakdown_of_a_step() -> None:
    import rate
    import steps

    overrides = ("target=sft", *steps.Rows("arithmetic", 2).overrides, *TINY)
    rates, phases, kinds = rate.measure(overrides, rounds=1)
    assert 0 < float(rates[2]["share"]) < 1
    assert {"decoder alone", "loss", "backward", "clipping", "optimizer"} == {row["phase"] for row in phases}
    assert sum(float(row["share"]) for row in kinds) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's own, of what it deprecates
def test_designs_inside_trl_are_compared_on_one_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    import inside_trl

    monkeypatch.setattr(inside_trl, "VOCABULARY", 600)
    names = (inside_trl.TRL_DFT, "TRL, compute_loss_func=hf_loss(dft)", "QTargetSFTTrainer, dft")
    losses = [float(inside_trl.step_of(inside_trl.CONTENDERS[name][0](str(tmp_path)))()) for name in names]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-2)  # bf16
    assert all(beside in inside_trl.CONTENDERS for _, beside in inside_trl.CONTENDERS.values())


def test_answers_of_forced_lengths_are_as_long_in_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    import answers

    monkeypatch.setattr(answers, "SHORTEST", 2)
    monkeypatch.setattr(answers, "LONGEST", 9)
    monkeypatch.setattr(answers, "BATCH", 5)
    whole, refilled = answers.measure(TINY, 2, 1)
    assert whole["answers"] == refilled["answers"] == 16
    assert whole["tokens"] == refilled["tokens"]
    assert 2 * 16 < whole["tokens"] < 9 * 16


# On a GPU, rehearsed without one


def test_the_head_on_a_device_has_a_row_for_each_way() -> None:
    import gpu_head

    rows = gpu_head.rows(gpu_head.QUICK[0], "cpu", rounds=1, compiled=False)
    assert {gpu_head.PLAIN, *gpu_head.OURS} <= {row["way"] for row in rows}
    assert rows[0]["time ratio"] == 1.0
    assert all(row["ms"] > 0 for row in rows)


def test_a_part_that_runs_out_of_time_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu

    monkeypatch.setattr(gpu, "_missing", lambda device, environment: "")
    (tmp_path / "steps.json").write_text(
        json.dumps({"part": "steps", "circumstances": "there", "tables": [["of before", [{"a": 1.5, "b": None}]]]})
    )
    given = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--limit"]
    assert gpu.main([*given, "0.3", "--part", "head"]) == 1
    text = (tmp_path / "GPU.md").read_text()
    assert "**Stopped after 0 s: what follows is what it had.**" in text
    assert text.index("## head") < text.index("## steps")
    assert "| 1.50 | – |" in text


@pytest.mark.slow
def test_parts_leave_their_figures_and_a_page(tmp_path: Path) -> None:
    import gpu

    assert gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path), "--part", "head", "memory"]) == 0
    for part in ("head", "memory"):
        found = json.loads((tmp_path / f"{part}.json").read_text())
        assert found["ended"] == ""
        assert "a rehearsal on a CPU" in found["circumstances"]
        assert f"## {part}" in (tmp_path / "GPU.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is one")
def test_without_a_device_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu

    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "sees no CUDA device here; --device cpu --quick rehearses without one" in capsys.readouterr().err


def test_wheels_are_unpacked_beside_the_results_without_another_torch(tmp_path: Path) -> None:
    import gpu

    for name in ("lacking-1.0-py3-none-any.whl", "torch-2.13.0-cp311-none-any.whl", "nvidia_cublas-1-none-any.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            wheel.writestr(f"{name.partition('-')[0]}.py", "")
    folder = gpu._unpacked(tmp_path, tmp_path / "packages")
    assert [path.name for path in folder.glob("*.py")] == ["lacking.py"]


def test_outcomes_of_tests_are_rows(tmp_path: Path) -> None:
    import gpu_tests

    written = tmp_path / "outcomes.xml"
    written.write_text(
        '<testsuites><testsuite><testcase name="a" time="0.5"/><testcase name="b" time="1">'
        '<failure message="no | luck&#10;at all"/></testcase></testsuite></testsuites>'
    )
    assert gpu_tests.outcomes(written) == [
        {"test": "a", "outcome": "passed", "seconds": 0.5, "said": None},
        {"test": "b", "outcome": "failure", "seconds": 1.0, "said": "no ¦ luck"},
    ]


@pytest.mark.slow
def test_rows_are_prepared_in_memory_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from prepared import Rows, measure

    monkeypatch.delenv("QTARGET_BASELINE", raising=False)
    table, tokens = measure(Rows(rows=40, lines=3, heldout=4, rounds=1, model="tiny"))
    assert [row["preparation"] for row in table] == [
        "in memory",
        "the first time",
        "again",
        "again, two processes together",
    ]
    assert tokens > 36 * 100
    assert all(isinstance(row["private bytes a token"], float) for row in table)

"""`qtarget export`: what is written is what others load, and the card says what the record says."""

from __future__ import annotations

import json
import platform
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from hub_server import Hub, serving
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from qtarget.cli import run as qtarget_cli
from qtarget.compare.groups import Group, rows
from qtarget.record.runs import read_runs

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),  # Lightning 2.6 on torch 2.13's pytrees
    pytest.mark.xdist_group("export"),  # trained once
]
PAGE = (Path(__file__).parents[2] / "docs" / "after_training.md").read_text()
CHAT = [{"role": "user", "content": "1 + 2"}]
SMALL = [
    "model=tiny",
    "target=dft",
    "data.rows=16",
    "data.heldout_rows=8",
    "trainer.max_steps=2",
    "trainer.batch_size=4",
]
SMALL += ["trainer.precision=32-true", "eval.new_tokens=2", "trainer.eval_every=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    assert qtarget_cli(["train", *SMALL, f"output_dir={outputs}"]) == 0
    (folder,) = outputs.glob("runs/*/")
    (folder / "checkpoint" / "optimizer.pt").touch()  # where earlier builds kept it
    return folder


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "new" / "my_model"
    assert qtarget_cli(["export", str(trained), "--to", str(folder)]) == 0
    return folder


def test_a_name_that_the_file_system_refuses_ends_with_an_error_that_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x" * 300, "x" * 300 + "/model", "x" * 250):  # 255 bytes are allowed; the last is, but for its scratch
        assert qtarget_cli(["export", str(trained), "--to", str(tmp_path / name)]) == 2
        assert "File name too long" in capsys.readouterr().err
        assert not list(tmp_path.glob("x*"))


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A run's folder to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / trained.name))


def change(run: Path, **facts: Any) -> None:
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | facts))


def card_of(run: Path, capsys: pytest.CaptureFixture[str]) -> ModelCard:
    assert qtarget_cli(["export", str(run), "--to", "hub:me/mine", "--dry-run"]) == 0
    told = capsys.readouterr().out
    return ModelCard(told[told.index("\n---\n") + 1 :], ignore_metadata_errors=False)


def test_plain_transformers_loads_the_model_that_was_saved(trained: Path, exported: Path) -> None:
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (exported, trained / "checkpoint")
    )
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert ours.generation_config.eos_token_id == theirs.generation_config.eos_token_id


def test_weights_tokenizer_generation_config_and_card_are_there_and_no_pickle(trained: Path, exported: Path) -> None:
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in exported.iterdir()} == wanted | {"chat_template.jinja", "README.md"}
    assert (trained / "checkpoint" / "optimizer.pt").is_file()
    assert [path.name for path in exported.parent.iterdir()] == ["my_model"]  # nothing beside it


def test_the_card_says_design_data_metrics_with_intervals_versions_and_command(trained: Path, exported: Path) -> None:
    card, result = (exported / "README.md").read_text(), json.loads((trained / "result.json").read_text())
    for text in ("L = −sg(p(y))·log p(y)", "Dynamic Fine-Tuning", "chain_sum", "16 trained on", "8 held out"):
        assert text in card
    low, high = (result["metrics"][f"test/accuracy_{end}"] for end in ("low", "high"))
    assert f"| test/accuracy | {result['metrics']['test/accuracy']:.4g} | [{low:.4g}, {high:.4g}] |" in card
    (run,) = read_runs(trained)
    interval = rows([Group({}, (run,))], "test/nll")[0].interval
    assert interval is not None
    assert interval.low < interval.mean < interval.high
    assert f"| test/nll | {interval.mean:.4g} | [{interval.low:.4g}, {interval.high:.4g}] |" in card
    assert f"| torch | {result['versions']['torch']} |" in card
    assert result["versions"]["python"] == platform.python_version()
    assert {"numpy", "sympy", "pyarrow", "tokenizers", "math-verify"} <= set(result["versions"])
    assert f"qtarget train {shlex.join(SMALL)} output_dir=…/outputs" in card
    assert "train/loss" not in card


def test_no_folder_of_this_machine_is_named_in_what_is_exported(trained: Path, exported: Path) -> None:
    places = [str(trained.parents[2]), str(exported.parent), str(Path.home())]
    for path in exported.iterdir():
        assert not [place for place in places if place.encode() in path.read_bytes()], path.name


def test_the_front_matter_is_that_of_the_hub(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = card_of(copied, capsys).data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["qtarget", "sft", "dft"],
    }
    change(copied, model="org/base-1B")
    card = card_of(copied, capsys)
    assert card.data.to_dict()["base_model"] == "org/base-1B"
    assert "org/base-1B fine-tuned with the target design `dft`" in card.text


@pytest.mark.parametrize(
    ("front_matter", "expected"),
    [
        ("license: apache-2.0\nbase_model: org/other\n", {"license": "apache-2.0"}),
        (
            "license: other\nlicense_name: own\nlicense_link: https://example.org/l\n",
            {"license": "other", "license_name": "own", "license_link": "https://example.org/l"},
        ),
        ("license_name: own\n", {}),
        ("license: [a\n", {}),
        ("license: [mit]\n", {}),
        (None, {}),
    ],
)
def test_the_licence_of_a_base_model_is_carried_where_its_card_lies_here(
    front_matter: str | None, expected: dict[str, str], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = copied / "base"
    base.mkdir()
    if front_matter is not None:
        (base / "README.md").write_text(f"---\n{front_matter}---\n\n# Base\n")
    change(copied, model=str(base))
    card = card_of(copied, capsys)
    assert {key: value for key, value in card.data.to_dict().items() if key.startswith("license")} == expected
    said = (
        f"trained from, `{expected['license']}`."
        if expected
        else "trained from, which was not known where this card was written"
    )
    assert said in card.text


def test_the_licence_of_a_model_of_the_hub_is_that_of_its_card_in_the_cache(
    copied: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--org--base-1B" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    refs = tmp_path / "models--org--base-1B" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    change(copied, model="org/base-1B")
    assert card_of(copied, capsys).data.license == "mit"


def test_a_base_model_in_a_folder_of_the_machine_is_named_by_its_last_part(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(copied, model=f"{copied}/secret_project/base")
    card = card_of(copied, capsys)
    assert "…/base fine-tuned" in card.text
    assert "secret_project" not in card.content


def test_a_dry_run_lists_what_would_be_uploaded_and_writes_nothing(
    trained: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for to in ("hub:me/mine", "folder"):
        assert qtarget_cli(["export", str(trained), "--to", to, "--dry-run"]) == 0
        told = capsys.readouterr().out
        size = (trained / "checkpoint" / "model.safetensors").stat().st_size
        assert re.search(rf"^  model\.safetensors +{size / 1000:.1f} kB$", told, re.MULTILINE)
        assert "optimizer.pt" not in told
    assert not list(workdir.iterdir())


def test_an_upload_that_fails_says_what_it_needs_and_never_the_token(
    trained: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    for name in ("me/mine", "not a name/x/y"):
        assert qtarget_cli(["export", str(trained), "--to", f"hub:{name}"]) == 2
        out, err = capfd.readouterr()
        assert "--dry-run shows what would be uploaded" in err
        assert "can't upload to hub:" in err
        assert "hf_secretsecret" not in out + err


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub for huggingface_hub's own client, which reads where it is when it is imported."""
    with serving() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
        yield hub


def test_an_upload_holds_what_a_folder_would_in_a_private_repository(
    trained: Path, exported: Path, hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    assert qtarget_cli(["export", str(trained), "--to", "hub:me/my_model"]) == 0
    held = {name: data for name, data in hub.files["me/my_model"].items() if name != ".gitattributes"}
    wanted = {path.name: path.read_bytes() for path in exported.iterdir()}
    wanted["README.md"] = wanted["README.md"].replace(b"# my_model", b"# me/my_model")
    wanted["README.md"] = wanted["README.md"].replace(b'model="my_model"', b'model="me/my_model"')
    assert held == wanted
    assert hub.private == {"me/my_model": True}
    assert hub.tokens == {"Bearer hf_secretsecret"}
    out, err = capfd.readouterr()
    assert out == f"uploaded to {hub.address}/me/my_model\n"
    assert "hf_secretsecret" not in err
    assert qtarget_cli(["export", str(trained), "--to", "hub:me/other", "--public"]) == 0
    assert hub.private["me/other"] is False


def test_a_repository_that_holds_something_is_refused(
    trained: Path, hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.files["me/full"] = {"model.safetensors": b"mine"}
    assert qtarget_cli(["export", str(trained), "--to", "hub:me/full"]) == 2
    assert "holds 1 files: name a new repository, or empty it" in capfd.readouterr().err
    assert hub.files["me/full"] == {"model.safetensors": b"mine"}


def test_a_hub_that_refuses_and_repeats_the_token_has_it_left_out(
    trained: Path, hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.refuses = True
    assert qtarget_cli(["export", str(trained), "--to", "hub:me/mine"]) == 2
    out, err = capfd.readouterr()
    assert "can't upload to hub:me/mine" in err
    assert "no: Bearer …" in err
    assert "hf_secretsecret" not in out + err
    assert not hub.files


@pytest.mark.parametrize(
    ("name", "location"),
    [
        ("smollm2_135m", "/home/ada/.cache/qtarget/models/smollm2-135m-instruct"),
        ("/cache/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/12fd25f", None),
    ],
)
def test_a_base_model_has_the_name_that_the_hub_knows_it_by(
    name: str, location: str | None, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["model"]["name"] = name
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    change(copied, model=location or name)
    card = card_of(copied, capsys)
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "\nHuggingFaceTB/SmolLM2-135M-Instruct fine-tuned" in card.text
    assert "smollm2-135m-instruct" not in card.text


def no_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoint")


def only_a_model(run: Path) -> None:
    (run / "result.json").unlink()


def no_weights(run: Path) -> None:
    (run / "checkpoint" / "model.safetensors").rename(run / "checkpoint" / "pytorch_model.bin")


def evaluated(run: Path) -> None:
    no_checkpoint(run)
    change(run, task="evaluate")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_checkpoint, "train again with checkpoint.save=true"),
        (evaluated, "export the run that trained it"),
        (lambda run: change(run, status="interrupted"), "is interrupted: give its command again"),
        (only_a_model, "is a model, and no run of qtarget"),
        (no_weights, "holds no safetensors"),
    ],
)
def test_what_can_not_be_exported_is_answered_with_what_to_do(
    make: Callable[[Path], None], message: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(copied)
    assert qtarget_cli(["export", str(copied), "--to", str(copied.parent / "new")]) == 2
    assert message in capsys.readouterr().err
    assert not (copied.parent / "new").exists()


def test_a_folder_that_holds_something_is_refused_and_an_empty_one_is_filled(
    trained: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "full").mkdir()
    (workdir / "full" / ".hidden").touch()
    (workdir / "file").write_text("mine")
    for to in ("full", "file", "file/below"):
        assert qtarget_cli(["export", str(trained), "--to", to]) == 2
        assert "isn't empty" in (error := capsys.readouterr().err) or "can't export to" in error
    assert ((workdir / "file").read_text(), len(list((workdir / "full").iterdir()))) == ("mine", 1)
    (workdir / "empty").mkdir()
    assert qtarget_cli(["export", str(trained), "--to", "empty"]) == 0
    assert (workdir / "empty" / "model.safetensors").is_file()


def test_a_folder_with_one_run_and_a_runs_checkpoint_name_the_run(trained: Path, workdir: Path) -> None:
    for where in (trained.parent, trained / "checkpoint"):
        assert qtarget_cli(["export", str(where), "--to", f"of_{where.name}"]) == 0


def test_the_page_after_training_loads_and_evaluates_what_was_exported(
    exported: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported, workdir / "my_model")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/after_training.md", "exec"), {})
    (command,) = [line for line in PAGE.splitlines() if line.startswith("qtarget evaluate ")]
    assert qtarget_cli(shlex.split(command)[1:]) == 0
    (result,) = workdir.glob("outputs/*/*/result.json")
    assert json.loads(result.read_text())["metrics"]["test/accuracy"] >= 0

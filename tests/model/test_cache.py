"""References scored once: what is on disk, who builds it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from training import batches, eight_rows, module, one_step, other_policy
from warm import fork_ranks, forking_context

import qtarget
from qtarget.cli import run as qtarget_cli
from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Collate
from qtarget.errors import QTargetError
from qtarget.files import locked
from qtarget.math.distribution import LABEL_SCALARS
from qtarget.math.loss import IGNORE
from qtarget.math.target import needs
from qtarget.math.tokens import CHUNK_BYTES
from qtarget.model import cache_build, provide
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.cache import READING, Cached, CachePlan
from qtarget.model.cache_build import check_room, ensure
from qtarget.model.cached_scores import Recipe
from qtarget.model.frozen import FrozenModel
from qtarget.model.policy import Policy
from qtarget.run import build, caching, estimate, ranks
from qtarget.run.cache_command import list_caches
from qtarget.run.plan import Plan, make_plan

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
SMALL = ["model=tiny", "trainer.max_steps=2", "data.rows=24", "data.heldout_rows=4", "eval.problems_in_training=4"]
CACHED = "reference@references.prior=cached"
ROUNDED = "optim.allow_bf16_rounding=true"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("QTARGET_CACHE", str(folder))
    return folder


def plan(folder: Path, detail: str = "hidden", dtype: str = "float32", **identity: str) -> CachePlan:
    recipe = Recipe(detail, topk=5, dtype=dtype, precision="32-true")
    made_from = {"data": identity.get("rows", "eight rows")}
    return CachePlan(folder, recipe, eight_rows().train, {"kept": str(recipe), **identity}, made_from, Collate(256))


def built(made: CachePlan, load: Any = other_policy) -> CachePlan:
    ensure(made, lambda done: load(), lambda done: None, print)
    return made


def test_a_cache_is_locked_while_it_is_read_and_readers_share_it(tmp_path: Path) -> None:
    """`qtarget clean --caches` holds this lock for itself, and so leaves what a run reads, wherever the run lies."""
    folder = tmp_path / "one"
    made = built(plan(folder))
    first, second = Cached(made), Cached(made)
    del made  # which holds it from the moment that it looks for it
    for reader in (first, second):
        assert reader.folder == folder
        with pytest.raises(QTargetError, match="is read"), locked(folder / READING, "is read", wait=0):
            pass
    del first, second, reader
    with locked(folder / READING, "is read", wait=0):
        pass


@pytest.mark.parametrize("is_there", [True, False])
def test_a_cache_stays_from_the_moment_that_a_run_looks_for_it(is_there: bool, own_cache: Path) -> None:
    """Models are loaded before it is opened."""
    folder = own_cache / "references" / "hidden-1"
    if is_there:
        built(plan(folder))
    wanted = plan(folder)
    caching.build_missing({"prior": wanted}, {"prior": provide.resolve("tiny")}, lambda name: other_policy())
    list_caches([], free_them=True)
    assert len(list(folder.glob("shard-*.safetensors"))) == 1
    Cached(wanted)


@pytest.mark.parametrize("detail", ["label", "sampled", "topk", "hidden"])
def test_a_model_that_gives_no_numbers_is_refused(detail: str, tmp_path: Path) -> None:
    policy = other_policy()
    with torch.no_grad():
        next(policy.decoder.norm.parameters()).fill_(torch.nan)
    made = plan(tmp_path / "one", detail)
    with pytest.raises(QTargetError, match=r"the model gives NaN .* for one of the rows of up to \d+ tokens"):
        built(made, lambda: policy)
    assert not made.is_built


def unbuilt() -> Policy:
    raise AssertionError("nothing is left to score")


@pytest.mark.parametrize(
    ("detail", "dtype", "per_token"),
    [
        ("label", "float32", 20),
        ("topk", "float32", 8 * 5),
        ("hidden", "float32", 4 * 32),
        ("hidden", "bfloat16", 2 * 32),
    ],
)
def test_a_token_takes_the_bytes_that_are_promised(tmp_path: Path, detail: str, dtype: str, per_token: int) -> None:
    made = built(plan(tmp_path / "one", detail, dtype))
    held = [tensor for path in made.folder.glob("shard-*") for tensor in load_file(path).values()]
    assert sum(tensor.nbytes for tensor in held) == made.tokens * per_token
    head = 4 * 32 * 260 if detail == "hidden" else 0
    assert made.bytes(32, 260) == made.tokens * per_token + head


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_hidden_states_are_the_exact_distribution(tmp_path: Path, dtype: str, tolerance: float) -> None:
    held = Cached(built(plan(tmp_path / "one", "hidden", dtype)))
    for batch in batches(eight_rows(), batch_size=3):
        kept = batch.labels.flatten() != IGNORE
        labels, like = batch.labels.flatten()[kept], torch.empty(int(kept.sum()), 260)
        live = FrozenModel(other_policy()).exact(batch).select(kept).at(labels, like).logp
        torch.testing.assert_close(held.exact(batch).at(labels, like).logp, live, atol=tolerance, rtol=tolerance)


def test_label_scalars_are_those_of_the_whole_distribution(tmp_path: Path) -> None:
    held = Cached(built(plan(tmp_path / "one", "label")))
    (batch,) = batches(eight_rows(), batch_size=8)
    kept = batch.labels.flatten() != IGNORE
    labels, like = batch.labels.flatten()[kept], torch.empty(int(kept.sum()), 260)
    live = FrozenModel(other_policy()).exact(batch).select(kept).at(labels, like)
    p = live.logp.double().exp()
    top = p.topk(20, dim=-1).values
    top = top / top.sum(-1, keepdim=True)
    at_label = p.gather(1, labels[:, None])
    expected = {
        "logp": at_label.squeeze(1).log(),
        "entropy": -(p * p.log()).sum(-1),
        "top_entropy": -(top * top.log()).sum(-1),
        "outranked": torch.where(p < at_label, p, 0.0).sum(-1),
        "concentration": p.square().sum(-1),
    }
    assert tuple(expected) == LABEL_SCALARS
    for name, values in expected.items():
        torch.testing.assert_close(held.reference(batch).label_scalars[name].double(), values, atol=1e-5, rtol=1e-4)
    with pytest.raises(QTargetError, match="holds label, not whole distributions"):
        held.exact(batch)


# Building


class Killed(BaseException):
    pass


def test_a_killed_build_goes_on_after_its_last_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "SHARD_TOKENS", 150)
    monkeypatch.setattr(cache_build, "BATCH_TOKENS", 150)
    whole, scored = built(plan(tmp_path / "whole")), []

    class Counting(Policy):
        def forward(self, *batch: Any) -> torch.Tensor:
            scored.append(len(batch[0]))
            if len(scored) == 5:
                raise Killed
            return super().forward(*batch)

    def load() -> Policy:
        policy = other_policy()
        return Counting(policy.lm, policy.vocab_size)

    made = plan(tmp_path / "killed")
    with pytest.raises(Killed):
        built(made, load)
    assert not made.is_built
    left = {path.name: path.stat().st_mtime_ns for path in made.folder.glob("shard-*")}
    assert 1 <= len(left) < len(list(whole.folder.glob("shard-*")))
    built(made, load)
    assert all((made.folder / name).stat().st_mtime_ns == time for name, time in left.items())
    assert sum(scored) < 2 * 8
    for batch in batches(eight_rows(), batch_size=3):  # rows of several shards at once
        torch.testing.assert_close(Cached(made).reference(batch).rows, Cached(whole).reference(batch).rows)


def test_what_another_process_left_when_it_was_killed_is_scored_by_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_build, "SHARD_TOKENS", 150)
    monkeypatch.setattr(cache_build, "BATCH_TOKENS", 150)

    class Dying(Policy):
        def forward(self, *batch: Any) -> torch.Tensor:
            raise Killed

    def load() -> Policy:
        policy = other_policy()
        return Dying(policy.lm, policy.vocab_size)

    made, whole = plan(tmp_path / "shared"), built(plan(tmp_path / "whole"))
    with pytest.raises(Killed):
        ensure(made, lambda done: load(), lambda done: None, print, rank=1, ranks=2)
    ensure(made, lambda done: other_policy(), lambda done: None, print, rank=0, ranks=2)
    assert contents(made) == contents(whole)
    assert not list(made.folder.glob(".shard-*.lock"))


def contents(made: CachePlan) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in made.folder.glob("*") if path.suffix in (".safetensors", ".json")}


def share(folder: str) -> None:
    """One rank's part in building a cache, from when all ranks have begun a shard."""
    cache_build.SHARD_TOKENS = cache_build.BATCH_TOKENS = 150
    rank, made = dist.get_rank(), plan(Path(folder))
    read = 0

    class Counting(Policy):
        def forward(self, *batch: Any) -> torch.Tensor:
            nonlocal read
            read += len(batch[0])
            return super().forward(*batch)

    def load(done: int) -> Policy:
        dist.barrier()
        policy = other_policy()
        return Counting(policy.lm, policy.vocab_size)

    ensure(made, load, lambda done: None, print, rank=rank, ranks=2)
    assert made.is_built
    Path(f"{folder}.{rank}").write_text(str(read))


def test_ranks_share_the_rows_and_the_files_are_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: which rows go through the model together doesn't depend on who scores them."""
    fork_ranks(monkeypatch)
    ranks.start(2, share, str(tmp_path / "two"))
    read = [int((tmp_path / f"two.{rank}").read_text()) for rank in (0, 1)]
    assert sum(read) == 8
    assert min(read) > 0
    monkeypatch.setattr(cache_build, "SHARD_TOKENS", 150)
    monkeypatch.setattr(cache_build, "BATCH_TOKENS", 150)
    assert contents(plan(tmp_path / "two")) == contents(built(plan(tmp_path / "one")))


@pytest.mark.slow
def test_the_command_shares_the_rows_over_devices(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_ranks(monkeypatch)  # ranks have this folder, not this environment
    two = ["references.prior.folder=two", "trainer.devices=2", "trainer.accelerator=cpu"]
    command = ["cache", "detail=label", "eval.kl_prior=false", *SMALL]
    assert qtarget_cli([*command, *two]) == 0
    assert qtarget_cli([*command, "references.prior.folder=one"]) == 0
    (made,), (alone,) = (list(Path(name).glob("*/shard-*.safetensors")) for name in ("two", "one"))
    assert made.read_bytes() == alone.read_bytes()


def test_a_cache_that_one_machine_built_is_read_by_another_wherever_it_lies(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another QTARGET_CACHE, and a model whose folder lies elsewhere: both are known by their content."""
    provide.load_policy(provide.resolve("tiny"), 260).lm.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")

    def planned(model: str) -> Plan:
        chosen = ["target=one_minus_prior", "trainer.accelerator=cpu", "model=path", f"model.name={tmp_path / model}"]
        return make_plan(RunConfig.compose([*SMALL[1:], *chosen, CACHED]))

    first = planned("model")
    caching.build_missing(first.caches, first.references, lambda name: build.scoring_model(first, name))
    made = contents(first.caches["prior"])
    own_cache.rename(tmp_path / "elsewhere")
    (tmp_path / "model").rename(tmp_path / "moved")
    monkeypatch.setenv("QTARGET_CACHE", str(tmp_path / "elsewhere"))
    second = planned("moved")
    assert all(str(plan.folder).startswith(str(tmp_path / "elsewhere")) for plan in second.caches.values())
    caching.build_missing(second.caches, second.references, lambda name: unbuilt())
    assert contents(second.caches["prior"]) == made
    Cached(second.caches["prior"])
    assert not any(str(tmp_path) in text for text in map(str, json.loads(made["manifest.json"])["identity"].values()))


def racer(folder: str, turn: Any, loads: Any) -> None:
    def load() -> Policy:
        with loads.get_lock():
            loads.value += 1
        return other_policy()

    made = plan(Path(folder))
    turn.wait()
    built(made, load)
    Cached(made)


@pytest.mark.slow
def test_of_several_processes_one_builds_and_the_others_wait(tmp_path: Path) -> None:
    context = forking_context()
    turn, loads = context.Barrier(3), context.Value("i", 0)
    racers = [context.Process(target=racer, args=(str(tmp_path / "one"), turn, loads)) for _ in range(3)]
    for process in racers:
        process.start()
    for process in racers:
        process.join(180)
    assert [process.exitcode for process in racers] == [0, 0, 0]
    assert loads.value == 1


def test_a_disk_without_room_is_told_before_anything_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(QTargetError, match=r"needs 2\.5 MB \(2500000 bytes\) and 1\.0 MB \(1000000 bytes\) are free"):
        check_room(tmp_path / "not" / "yet", 2_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    monkeypatch.chdir(tmp_path)
    assert qtarget_cli(["train", "target=one_minus_prior", CACHED, *SMALL]) == 2
    assert not list(tmp_path.glob("cache/references/*/shard-*"))


# Reading


def refused(made: CachePlan, message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        Cached(made)
    with pytest.raises(QTargetError, match="remove the folder to have it built again"):
        Cached(made)


def test_a_damaged_cache_is_refused_with_the_reason(tmp_path: Path) -> None:
    whole = built(plan(tmp_path / "whole"))

    def copy(name: str) -> CachePlan:
        shutil.copytree(whole.folder, tmp_path / name)
        return plan(tmp_path / name)

    cut, gone, changed, headless, torn = map(copy, ("cut", "gone", "changed", "headless", "torn"))
    shard = "shard-00000.safetensors"
    size = (cut.folder / shard).stat().st_size
    with (cut.folder / shard).open("r+b") as file:
        file.truncate(size - 1)
    refused(cut, f"{shard} has {size - 1} bytes instead of {size}")
    (gone.folder / shard).unlink()
    refused(gone, f"{shard} is missing")
    with (changed.folder / shard).open("r+b") as file:
        file.seek(size - 8)
        file.write(b"\0\1\2\3")
    refused(changed, f"{shard} was changed after it was made")
    (headless.folder / "head.safetensors").unlink()
    refused(headless, r"head\.safetensors is missing")
    (torn.folder / "manifest.json").write_text('{"format": 1')
    refused(torn, r"no readable manifest\.json")


def test_a_cache_of_something_else_is_refused_with_what_differs(tmp_path: Path) -> None:
    built(plan(tmp_path / "one", rows="first"))
    refused(plan(tmp_path / "one", rows="second"), r"is of other rows \(data: 'first', now 'second'\)")
    refused(plan(tmp_path / "one", "label", rows="first"), "is of other kept")
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(manifest | {"format": 0}))
    refused(plan(tmp_path / "one", rows="first"), "is of other format")


# The command


def result(workdir: Path) -> dict[str, Any]:
    (path,) = workdir.glob("outputs/runs/*/result.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_run_builds_what_is_missing_and_the_next_one_reads_it(
    workdir: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "target=one_minus_prior", CACHED, "references.prior.store_dtype=float32", *SMALL]
    assert qtarget_cli([*command, "trainer.precision=32-true"]) == 0
    said = capsys.readouterr()
    assert "prior cache: " in said.out
    assert "tokens/s" in said.err
    first, made = result(workdir), {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.safetensors")}
    shutil.rmtree("outputs")
    live = ["train", "target=one_minus_prior", *SMALL, "trainer.precision=32-true"]
    assert qtarget_cli(live) == 0
    for name in ("train/nll", "train/loss", "target/reliance", "test/nll", "test/kl_prior"):
        assert first["metrics"][name] == pytest.approx(result(workdir)["metrics"][name], rel=1e-4, abs=1e-7), name
    shutil.rmtree("outputs")
    capsys.readouterr()
    again = [*command, "trainer.precision=32-true", "optim.lr=0.001"]
    assert qtarget_cli(again) == 0
    assert "prior cache: " not in capsys.readouterr().out
    assert made == {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.safetensors")}


def test_other_rows_template_weights_or_precision_are_another_cache(workdir: Path, own_cache: Path) -> None:
    def caches(*overrides: str) -> int:
        assert qtarget_cli(["cache", "detail=label", "eval.kl_prior=false", *SMALL, *overrides]) == 0
        return len(list(own_cache.glob("references/*/manifest.json")))

    assert caches() == 1
    assert caches("optim.lr=0.5", "trainer.batch_size=2", "data.packing=500") == 1
    assert caches("data.noise.seed=1") == 2
    assert caches("trainer.precision=32-true") == 3
    assert caches("references.prior.topk=7") == 3


def test_cache_scores_before_the_runs_and_says_what_to_do_next(
    workdir: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qtarget_cli(["cache", "detail=topk", "role=teacher", "references.teacher.name=tiny", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "teacher: topk of " in said
    (command,) = [line.removeprefix("next: qtarget ") for line in said.splitlines() if line.startswith("next")]
    made = {path: path.stat().st_mtime_ns for path in own_cache.rglob("shard-*")}
    assert qtarget_cli(command.replace("NAME", "kd_support").split()) == 0
    assert made == {path: path.stat().st_mtime_ns for path in own_cache.rglob("shard-*")}
    assert result(workdir)["status"] == "finished"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cache", "detail=all"], "detail must be one of label, sampled, topk, hidden, got 'all'"),
        (["cache", "role=old"], "role must be one of prior, teacher, got 'old'"),
        (["train", "target=asft", CACHED, "references.prior.detail=label"], "got label"),
        (["train", CACHED, "references.prior.detail=some"], "references.prior.detail must be one of"),
        (["train", CACHED, "references.prior.store_dtype=int8"], "references.prior.store_dtype must be one of"),
        (["train", "target=asft", "reference@references.prior=adapter_off"], "this policy has none"),
        (["train", "model.attention=flash_attention_2"], "needs a GPU and the package flash-attn"),
        (["train", "model/adapter=lora", "model.adapter.rank=0"], "model.adapter.rank must be a whole number"),
        (
            ["train", "reference@references.teacher=adapter_off"],
            "references.teacher must be one of frozen, privileged, cached, none",
        ),
    ],
)
def test_what_cannot_be_is_told_at_once(
    workdir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert qtarget_cli([*arguments, *SMALL]) == 2
    assert message in capsys.readouterr().err


def test_a_given_folder_holds_caches_side_by_side(workdir: Path, own_cache: Path) -> None:
    """Of other rows, other roles and other details: each by its content, none mistaken for another."""
    place = ["references.prior.folder=mine", CACHED, *SMALL]
    for options in (["target=one_minus_prior"], ["target=asft"], ["target=one_minus_prior", "data.noise.seed=3"]):
        assert qtarget_cli(["train", *options, *place]) == 0
    assert len(list(Path("mine").glob("label-*/manifest.json"))) == 2
    assert len(list(Path("mine").glob("hidden-*/manifest.json"))) == 2  # one of them of the held-out rows
    assert not own_cache.exists()


def test_a_damaged_cache_is_found_before_anything_else_is_done(
    workdir: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "target=asft", CACHED, *SMALL]
    assert qtarget_cli(command) == 0
    for path in own_cache.rglob("head.safetensors"):
        path.unlink()
    capsys.readouterr()
    for more in (["optim.lr=0.5"], ["trainer=dry"]):
        assert qtarget_cli([*command, *more]) == 2
        assert "head.safetensors is missing" in capsys.readouterr().err


def test_without_held_out_rows_a_cached_prior_that_nobody_reads_is_left_alone(workdir: Path, own_cache: Path) -> None:
    assert qtarget_cli(["train", "target=sft", CACHED, *SMALL, "data.heldout_rows=0", "trainer.eval_every=0"]) == 0
    assert not own_cache.exists()


@pytest.mark.parametrize(
    ("design", "changes"), [("one_minus_prior", {}), ("eaft", {"reliance.source": "prior"}), ("asft", {})]
)
def test_under_bf16_products_a_cache_says_what_the_model_says(
    design: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Scalars are made in fp32 on both sides; only products are rounded."""
    prepared, means = eight_rows(), []
    recipe = Recipe("hidden" if design == "asft" else "label", topk=5, dtype="bfloat16", precision="bf16-mixed")
    held = built(CachePlan(tmp_path / "one", recipe, prepared.train, {}, {}, Collate(256)))
    (batch,) = batches(prepared, batch_size=8)
    for prior in (FrozenModel(other_policy()), Cached(held)):
        trained = module(design, changes, prior=prior)
        with torch.autocast("cpu", torch.bfloat16):
            means.append(one_step(trained, [batch])[1])
    for name in ("train/loss", "target/reliance"):
        assert means[1][name] == pytest.approx(means[0][name], rel=2e-3)


def test_label_scalars_are_not_rounded_under_bf16_products() -> None:
    recipe = Recipe("label", topk=5, dtype="bfloat16", precision="bf16-mixed")
    (batch,) = batches(eight_rows(), batch_size=8)
    scalars = recipe.scores(other_policy(), batch)["statistics"]
    assert not torch.equal(scalars[:, 1], scalars[:, 1].bfloat16().float())  # entropies, sums of products


def test_label_scalars_serve_the_entropy_of_the_top_tokens_they_were_made_with() -> None:
    known, other = (qtarget.load_design("eaft", **{"reliance.source": "prior", "reliance.top": top}) for top in (20, 5))
    assert needs(known) == {"prior": "label"}
    assert needs(other) == {"prior": "full"}


@pytest.mark.parametrize("targets", ["[no_such_layer]", "[q_proj,lm_head]"])
def test_adapters_that_could_not_work_are_refused(
    workdir: Path, targets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert qtarget_cli(["train", *SMALL, "model/adapter=lora", f"model.adapter.targets={targets}"]) == 2
    assert "model.adapter.targets" in capsys.readouterr().err


def test_a_wider_padded_teacher_is_cut_to_the_true_vocabulary(tmp_path: Path) -> None:
    """The same tokenizer, padded to other sizes on both sides: padding holds no probability on either."""
    narrow, wide = other_policy(), other_policy()
    wide.lm.resize_token_embeddings(300, mean_resizing=False)
    with torch.no_grad():
        wide.lm.get_output_embeddings().weight[260:] = 5.0
    made = built(plan(tmp_path / "narrow"), lambda: narrow), built(plan(tmp_path / "wide"), lambda: wide)
    (batch,) = batches(eight_rows(), batch_size=8)
    for vocab in (260, 280, 300):
        like = torch.empty(made[0].tokens, vocab)
        labels = batch.labels[batch.labels != IGNORE]
        first, second = (Cached(one).reference(batch).at(labels, like).logp for one in made)
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
        assert torch.isneginf(second[:, 260:]).all()


@pytest.mark.parametrize(
    "options",
    [
        ["model.gradient_checkpointing=true"],
        ["model/adapter=lora", "data.packing=200"],
        pytest.param(
            ["model.compile=true"],
            marks=[
                pytest.mark.slow,
                pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
            ],  # torch's own
        ),
    ],
)
def test_ways_to_train_reach_the_same_place(workdir: Path, options: list[str]) -> None:
    assert qtarget_cli(["train", *SMALL, *options]) == 0
    metrics = result(workdir)["metrics"]
    assert metrics["train/nll"] == pytest.approx(5.57, abs=0.05)
    checkpoint = next(workdir.glob("outputs/runs/*/checkpoint"))
    weights = load_file(checkpoint / "model.safetensors")
    assert not any("lora" in name for name in weights)
    if "model/adapter=lora" in options:
        adapter = load_file(checkpoint.parent / "adapter" / "adapter_model.safetensors")
        assert all("lora_" in name for name in adapter)


def test_a_dry_run_says_what_a_run_would_take_and_leaves_nothing(
    workdir: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "target=asft", CACHED, *SMALL, "trainer=dry", "data.rows=24"]
    assert qtarget_cli(command) == 0
    said = capsys.readouterr().out
    assert "2 steps × 12 rows = 1 epochs of 24 rows" in said
    assert "prior: hidden of " in said
    assert "to be built in" in said
    assert "GB free there" in said
    assert not own_cache.exists()
    assert not list(workdir.rglob("result.json"))


@pytest.mark.parametrize(
    ("options", "bytes_per_weight", "operations_per_weight"),
    [
        (["target=sft", "trainer.precision=32-true"], 4 + 4 + 8 + 4, 6),  # the prior, for measuring drift from it
        (["target=sft", "eval.kl_prior=false"], 4 + 4 + 8, 6),
        (["target=asft", "trainer.precision=32-true"], 4 + 4 + 8 + 4, 8),
        (["target=asft", "model.dtype=bfloat16", "references.prior.dtype=bfloat16", ROUNDED], 2 + 4 + 8 + 2, 8),
        (["target=asft", CACHED], 4 + 4 + 8, 6),
    ],
)
def test_what_a_dry_run_counts(
    workdir: Path, options: list[str], bytes_per_weight: int, operations_per_weight: int
) -> None:
    """Weights, gradients, two moments, a copy for a live prior; 2 operations forward, 4 backward, 2 for the prior."""
    made = make_plan(RunConfig.compose([*SMALL, *options]))
    policy = provide.outline(made.model, len(made.tokenizer))
    weights = sum(tensor.numel() for tensor in other_policy().parameters())
    assert estimate._memory(made, policy) - 4 * CHUNK_BYTES == bytes_per_weight * weights
    trunk = weights - 260 * 32
    assert estimate._operations(made, policy, 1, 0) == operations_per_weight * trunk

"""Answers of a server: what is asked of it, and what every way of going wrong is answered by."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import completions_server
import pytest
from completions_server import Completions, serving
from tokenizers import AddedToken

from qtarget.config.composing import compose_config
from qtarget.config.identity import config_hash
from qtarget.config.run_config import RunConfig
from qtarget.errors import QTargetError
from qtarget.evaluate.completions import Client, LostServerError
from qtarget.evaluate.prompting import check_thoughts
from qtarget.evaluate.sampling import GREEDY, Sampling, seed_of
from qtarget.evaluate.served import Served, ServedPrompt, Server
from qtarget.evaluate.server_settings import KEY, ServerConfig
from qtarget.model.builtin import tiny_tokenizer

PROMPTS = [ServedPrompt(range(length), "x" * length) for length in (5, 3, 9)]
DRAWN = Sampling(4, 0.7, 0.9, seed=3)
SCRIPT = f"{sys.executable} {completions_server.__file__} {{port}} {{checkpoint}}"


def asking(server: Completions, sampling: Sampling = DRAWN, **given: Any) -> Served:
    settings = {"url": server.address, "timeout": 5.0, "retries": 2} | given
    config = ServerConfig(**settings)
    return Served(config, Client(server.address, config.timeout, config.retries, pause=0.01), "judged", sampling)


# What is asked


@pytest.mark.parametrize("in_flight", [1, 5])
def test_every_sample_is_a_request_with_a_seed_of_its_own(in_flight: int) -> None:
    with serving() as server:
        answers = asking(server, in_flight=in_flight).answers(PROMPTS, 30)
    seeds = [[seed_of(3, list(prompt.ids), sample) >> 32 for sample in range(4)] for prompt in PROMPTS]
    assert [[one.text for one in row] for row in answers] == [
        [f"{len(prompt.ids)} {seed}" for seed in row] for prompt, row in zip(PROMPTS, seeds, strict=True)
    ]
    assert all(one.ended and one.tokens == len(str(one.text)) for row in answers for one in row)
    assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in server.bodies} == {(0.7, 0.9, 30)}
    assert sorted(len(body["prompt"]) for body in server.bodies) == [3] * 4 + [5] * 4 + [9] * 4
    assert server.most_at_once <= in_flight
    assert (server.most_at_once > 1) == (in_flight > 1)


def test_prompts_are_sent_as_tokens_or_as_their_text_and_extra_fields_stand_beside_them() -> None:
    with serving(mode="takes text") as server:
        asking(server, prompts="text", extra={"top_k": 5}).answers(PROMPTS[:1], 30)
        assert server.bodies[0]["prompt"] == "xxxxx"
        assert server.bodies[0]["top_k"] == 5
        with pytest.raises(QTargetError, match=r"takes no token ids: set eval\.server\.prompts=text"):
            asking(server).answers(PROMPTS[:1], 30)


def test_an_answer_that_the_limit_cut_off_has_not_ended() -> None:
    with serving() as server:
        ((answer,),) = asking(server, GREEDY).answers(PROMPTS[:1], 4)
    assert (answer.ended, answer.tokens, answer.text is not None and len(answer.text)) == (False, 4, 4)


def test_half_a_letter_is_no_loss_of_the_answers(tmp_path: Path) -> None:
    """JSON may hold half a surrogate pair, and a file of text may not."""
    with serving(mode="halves a letter") as server:
        (answer,) = asking(server, GREEDY).answers(PROMPTS[:1], 30)[0]
    assert answer.text == "12?"
    (tmp_path / "answers").write_text(answer.text, encoding="utf-8")


def test_the_key_comes_from_the_environment_and_goes_to_the_server_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(KEY, "a secret")
    with serving() as server:
        asking(server).answers(PROMPTS[:1], 30)
    assert server.keys == {"Bearer a secret"}
    own = ServerConfig(command=f"{SCRIPT} ''")
    with Server(own, "judged", tmp_path / "log").answering(GREEDY, PROMPTS[0]):
        pass
    assert (tmp_path / "log").read_text().splitlines()[0] == "loading judged no key"


# What goes wrong


def test_a_busy_server_is_asked_again() -> None:
    with serving(mode="busy twice") as server:
        asking(server, in_flight=1).answers(PROMPTS, 30)
        assert len(server.bodies) == 12 + 2
    with serving(mode="busy") as server, pytest.raises(LostServerError, match=r"asked 3 times .*status 503.*no worker"):
        asking(server, in_flight=1).answers(PROMPTS, 30)


def test_a_server_that_hangs_is_given_up_in_time() -> None:
    given_up = pytest.raises(LostServerError, match=r"asked 2 times with 0\.2 s each.*timed out")
    with serving(mode="hangs") as server, given_up:
        asking(server, timeout=0.2, retries=1, in_flight=3).answers(PROMPTS, 30)


def test_requests_that_hang_do_not_keep_an_error_waiting() -> None:
    began = time.monotonic()
    with serving(mode="hangs, and refuses") as server:
        with pytest.raises(QTargetError, match="refused a request with status 400"):
            asking(server, timeout=60, in_flight=4).answers(PROMPTS, 30)
        assert time.monotonic() - began < 1.5


def test_a_server_that_is_not_there_is_named() -> None:
    with serving() as server:
        pass
    with pytest.raises(LostServerError, match=f"{server.address} gave no answer.*ConnectionRefused"):
        asking(server).answers(PROMPTS, 30)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("cuts", r"cut an answer at 2 tokens, and eval\.new_tokens allows 30: start it with a longer context"),
        ("filters", "ended an answer for the reason 'content_filter'"),
        ("counts nothing", r"answers without what is needed \(KeyError\('usage'\)\)"),
        ("marks prompts", "read 6 tokens of a prompt that has 5"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_ends_the_evaluation(mode: str, message: str) -> None:
    with serving(mode=mode) as server, pytest.raises(QTargetError, match=message):
        asking(server).answers(PROMPTS, 30)


def test_another_model_is_not_judged_under_this_ones_name() -> None:
    with serving("other/model") as server, pytest.raises(QTargetError, match="answers as 'other/model', and 'judged'"):
        asking(server).answers(PROMPTS, 30)
    with serving("judged@main") as server:  # as transformers serve names a revision
        assert asking(server).answers(PROMPTS, 30)


def test_a_server_that_ignores_temperature_and_seed_is_found_out(tmp_path: Path) -> None:
    with serving(mode="greedy") as server:
        config = ServerConfig(url=server.address)
        with (
            pytest.raises(QTargetError, match="gives the same answer whatever the seed"),
            Server(config, "judged", tmp_path / "log").answering(DRAWN, PROMPTS[0]),
        ):
            pass
        with Server(config, "judged", tmp_path / "log").answering(GREEDY, PROMPTS[0]) as served:
            assert served.answers(PROMPTS, 30)


# A server that is started


def own(mode: str, tmp_path: Path, **given: Any) -> Callable[[], Any]:
    server = Server(ServerConfig(command=f"{SCRIPT} '{mode}'", **given), "judged", tmp_path / "log")
    return partial(server.answering, GREEDY, PROMPTS[0])


def test_a_server_is_started_and_ended(tmp_path: Path) -> None:
    with own("", tmp_path)() as served:
        assert len(served.answers(PROMPTS, 30)) == 3
        assert served.name == "judged"
    with pytest.raises(QTargetError, match="ended by signal SIGTERM"):
        served.answers(PROMPTS, 30)


def test_a_server_that_loads_its_model_behind_its_address_is_waited_for(tmp_path: Path) -> None:
    """As llama.cpp's does, which answers 503 meanwhile; for as long as a server may take to start."""
    with own("busy twice", tmp_path, retries=0)() as served:
        assert len(served.answers(PROMPTS, 30)) == 3
    with pytest.raises(LostServerError, match="status 503"), own("busy", tmp_path, retries=0, start=1.0)():
        pass


def test_a_server_that_dies_is_answered_by_the_end_of_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(QTargetError, match=r"the server ended by exit code 3; .*\n  loading judged no key\n  CUDA out"),
        own("dies", tmp_path)() as served,
    ):
        served.answers(PROMPTS, 30)


def test_a_server_that_does_not_start_is_answered_by_the_end_of_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(QTargetError, match=r"ended by exit code 1; .*\n  .*\n  no such model"),
        own("ends at once", tmp_path)(),
    ):
        pass
    with (
        pytest.raises(
            QTargetError, match=r"does not answer at .* after eval\.server\.start=0\.5 seconds; .*\n  loading"
        ),
        own("never listens", tmp_path, start=0.5)(),
    ):
        pass
    with (
        pytest.raises(QTargetError, match=r"eval\.server\.command can't be started: .*no_such_program"),
        Server(ServerConfig(command="no_such_program {port}"), "judged", tmp_path / "log").answering(
            GREEDY, PROMPTS[0]
        ),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="by prctl, which Linux has")
def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Also where that was killed: nothing holds the device then."""
    program = f"""
import os, signal
from pathlib import Path
from qtarget.evaluate.server_process import started
from qtarget.evaluate.server_settings import ServerConfig
with started(ServerConfig(command={f"{SCRIPT} ''"!r}), "judged", Path({str(tmp_path / "log")!r})) as server:
    print(server.process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    deadline = time.monotonic() + 10
    while is_running(int(killed.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(killed.stdout))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["eval.engine=server"], "needs one of eval.server.command and eval.server.url, got None and None"),
        (["eval.server.command=vllm"], r"has no \{port\}"),
        (['eval.server.command="serve \'{port}"'], "can't be split into words as a shell does: No closing quotation"),
        (["eval.server.url=localhost:8000"], "must be an address such as http://localhost:8000/v1"),
        (["eval.server.url='https://me:secret@host/v1'"], "no user, password or query, .*set QTARGET_SERVER_KEY"),
        (["+eval.server.extra.seed=3"], "none of model, prompt"),
        (["eval.server.prompts=tokens"], "eval.server.prompts must be one of ids, text"),
        (["+eval.server.key=3"], "unknown key 'eval.server.key'"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        RunConfig.compose(["model=tiny", *given])


def test_a_servers_answers_are_a_result_of_their_own_wherever_it_is() -> None:
    def hashed(*given: str) -> str:
        return config_hash(compose_config("train", ["model=tiny", *given]))

    server = ["eval.engine=server", "eval.server.url=http://one/v1"]
    assert hashed("eval.server.in_flight=3", "eval.server.url=http://one/v1") == hashed()  # engine=local asks nobody
    assert hashed(*server) != hashed()
    assert hashed("eval.engine=server", "eval.server.url=http://two/v1", "eval.server.retries=0") == hashed(*server)
    for other in ("+eval.server.extra.top_k=5", "eval.server.prompts=text"):
        assert hashed(*server, other) != hashed(*server)
    assert RunConfig.compose(["model=tiny", *server]).hash == hashed(*server)


def test_thoughts_that_special_tokens_mark_are_not_left_to_a_server() -> None:
    tokenizer = tiny_tokenizer()
    check_thoughts(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|START_THINKING|>", special=True)]})
    with pytest.raises(QTargetError, match=r"marks thoughts by special tokens \(<\|START_THINKING\|>\)"):
        check_thoughts(tokenizer)

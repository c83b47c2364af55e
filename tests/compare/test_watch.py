"""The live page: served to this machine alone, made again when runs move on."""

from __future__ import annotations

import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_runs import write_run

from qtarget.cli import run as qtarget_cli
from qtarget.compare import watch as watch_module
from qtarget.compare.command import CompareOptions
from qtarget.compare.watch import HOST, LivePage, _counts, serve
from qtarget.errors import QTargetError
from qtarget.record.runs import STALE, files_below

HISTORY = '{"step": 1, "time": 1.0, "train/nll": 2.0}'


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    server = serve(LivePage([tmp_path / "demo"]))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{HOST}:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def read(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
        return str(answer.read().decode())


def test_the_page_follows_its_runs(tmp_path: Path, address: str) -> None:
    (tmp_path / "demo").mkdir()
    assert "No runs found" in read(address)
    empty = read(f"{address}/version")
    folder = write_run(tmp_path / "demo", "sft", "a" * 12, status="running", history=HISTORY)
    started = read(f"{address}/version")
    assert f"version: '{started}'" in read(address)
    assert "interrupted after step 1" in read(address)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n" + HISTORY.replace('"step": 1', '"step": 2'))
    assert len({empty, started, read(f"{address}/version")}) == 3
    assert "interrupted after step 2" in read(address)


def test_nothing_but_the_page_is_served(tmp_path: Path, address: str) -> None:
    write_run(tmp_path / "demo", "sft", "a" * 12)
    for path in ("/demo/result.json", "/../demo/result.json", "/version/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            read(address + path)


def test_a_name_of_another_host_is_refused(address: str) -> None:
    """A page elsewhere can let its own name point at 127.0.0.1; the browser still sends that name."""
    with pytest.raises(urllib.error.HTTPError, match="403"):
        read(address, Host="example.org")
    assert read(f"{address}/version", Host=address.removeprefix("http://").replace(HOST, "localhost"))


def test_it_listens_on_this_machine_alone(tmp_path: Path) -> None:
    server = serve(LivePage([tmp_path]))
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(QTargetError, match=rf"--port {server.server_address[1]}.*choose another"):
        serve(LivePage([tmp_path]), server.server_address[1])
    server.server_close()


def test_groups_stand_on_it_as_in_compare(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / "demo", "sft", f"{seed:012x}", seed=seed)
    page = LivePage([tmp_path], CompareOptions(group_by=["target"])).text()
    assert "Over seeds, by target" in page
    assert "to group by" in LivePage([tmp_path], CompareOptions(group_by=["nothing.here"])).text()


def test_the_command_says_where_and_how_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "demo", "sft", "a" * 12)
    write_run(tmp_path / "demo", "dft", "b" * 12, status="failed")

    def interrupted(seconds: float) -> None:
        assert seconds == 0.5
        raise KeyboardInterrupt

    monkeypatch.setattr(watch_module.time, "sleep", interrupted)
    assert qtarget_cli(["watch", str(tmp_path / "demo"), "--no-browser", "--every", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "at http://127.0.0.1:" in printed
    assert "1 finished, 1 failed" in printed


def test_it_may_be_started_before_the_first_run(tmp_path: Path) -> None:
    page = LivePage([tmp_path / "none"])
    assert "No folder" in page.text()
    assert _counts([tmp_path / "none"]) == f"no runs yet: {tmp_path / 'none'} isn't there yet"
    write_run(tmp_path / "none", "sft", "a" * 12)
    assert "Comparison of demo" in page.text()
    assert _counts([tmp_path / "none"]) == "1 finished"


def test_a_run_that_has_gone_quiet_is_told_of_though_no_file_has_changed(tmp_path: Path) -> None:
    """A killed run writes nothing more; its result.json is no longer renewed every minute."""
    result = write_run(tmp_path, "sft", "a" * 12, status="running") / "result.json"
    page = LivePage([tmp_path])
    before = page.version()
    long_ago = time.time() - 2 * STALE.total_seconds()
    os.utime(result, (long_ago, long_ago))
    assert page.version() != before


def test_states_that_go_while_it_looks_are_passed_by(tmp_path: Path) -> None:
    """pathlib's rglob (3.11) raises where a folder is removed during its walk; a run removes old states."""
    folder = write_run(tmp_path, "sft", "a" * 12)
    (folder / "state" / "step-3").mkdir(parents=True)
    (folder / "state" / "step-3" / "result.json").write_text("{}")
    assert list(files_below(tmp_path, ("result.json",))) == [folder / "result.json"]


def test_a_folder_whose_name_is_no_utf_8_is_shown(tmp_path: Path) -> None:
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    write_run(Path(bad), "sft", "a" * 12)
    assert "??/aaaaaaaaaaaa" in LivePage([tmp_path]).text().encode("utf-8").decode()


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1"])
def test_the_seconds_between_two_looks_have_bounds(value: str, tmp_path: Path) -> None:
    assert qtarget_cli(["watch", str(tmp_path), f"--every={value}"]) == 2

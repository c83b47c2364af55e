"""The live page: served to this machine alone, made again when runs move on."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_runs import write_run

from qtarget.cli import run as qtarget_cli
from qtarget.compare import watch as watch_module
from qtarget.compare.command import CompareOptions
from qtarget.compare.watch import HOST, LivePage, serve
from qtarget.errors import QTargetError

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


def test_a_folder_that_isnt_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qtarget_cli(["watch", str(tmp_path / "none")]) == 2
    assert "No folder" in capsys.readouterr().err

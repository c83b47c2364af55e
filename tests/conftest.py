"""What every test has: no network to wait for, and a working folder of its own where it asks for one."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from wandb_server import Backend

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
# torch takes every core for itself: two workers on two cores would wait for each other's threads, twice the time. One
# process beside other work would, too, and the tiny model has no work for a second thread.
if "QTARGET_CACHE" not in os.environ:
    # What tests prepare goes with them; models that were converted once are taken from where they are.
    from platformdirs import user_cache_path

    models = user_cache_path("qtarget") / "models"
    models.mkdir(parents=True, exist_ok=True)
    cache = tempfile.mkdtemp(prefix="qtarget-tests-")
    Path(cache, "models").symlink_to(models)
    atexit.register(lambda mine: mine == os.getpid() and shutil.rmtree(cache, ignore_errors=True), os.getpid())
    os.environ["QTARGET_CACHE"] = cache
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", os.cpu_count() or 1))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A background job of a shell, and nohup, begin with SIGINT ignored, and so would every process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def warm_bin() -> Iterator[Path]:
    from warm import WarmPython

    python = WarmPython()
    yield python.bin
    python.close()


@pytest.fixture
def warm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python`, `qtarget` and `wandb` that this test starts are forks of an interpreter that has imported them."""
    if hasattr(os, "pidfd_open"):  # Linux; elsewhere they are real ones
        folder = request.getfixturevalue("warm_bin")
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        monkeypatch.setattr(sys, "executable", str(folder / "python"))


@pytest.fixture
def warm_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of `ranks.start` are forks of one that has imported everything."""
    from warm import fork_ranks

    fork_ranks(monkeypatch)


@pytest.fixture
def wandb_server(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A W&B server for the real client, which this process and its children talk to."""
    import wandb
    import wandb_server

    with wandb_server.serving() as backend:
        for name, value in wandb_server.environment(backend, workdir).items():
            monkeypatch.setenv(name, value)
        wandb.teardown()  # what earlier tests have set up, with another server's address
        yield backend
        wandb.teardown()
    assert not backend.unknown


@pytest.fixture(params=["key", pytest.param("server", marks=pytest.mark.slow)])
def no_wandb(
    request: pytest.FixtureRequest, wandb_server: Backend, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B that can't be asked: without a key, or without a server that answers."""
    import wandb

    monkeypatch.setenv("NETRC", str(workdir / "none"))
    if request.param == "key":
        monkeypatch.delenv("WANDB_API_KEY")
    else:
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()


@pytest.fixture
def eight_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose CUDA devices are 0 to 7."""
    from qtarget.launch import slots

    monkeypatch.setattr(slots, "_visible_devices", lambda: list("01234567"))

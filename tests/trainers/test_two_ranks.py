"""Two processes under DDP (gloo) do what one does, through TRL's trainer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_trainers as tiny
import torch
import two_ranks
from test_exact import CASES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("trainer-ranks"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),  # peft 0.21
]
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        port = line.getsockname()[1]
    path = os.pathsep.join(part for part in sys.path if part)
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "PYTHONPATH": path}
    common |= {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", two_ranks.__file__, str(folder)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(text[-3000:] for text in told)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", two_ranks.NAMES)
def test_two_ranks_take_the_steps_of_qtarget_train(ranks: list[Found], name: str, tmp_path: Path) -> None:
    case = CASES[name]
    expected = tiny.of_qtarget_train(case.load(), case.given())
    for found in ranks:
        tiny.assert_same(found[name]["weights"], expected)
    one = two_ranks.trained(name, tmp_path)
    for found in ranks:
        for mine, other in zip(found[name]["logged"], one["logged"], strict=True):
            assert mine.pop("loss") == pytest.approx(other["loss"], rel=1e-6)  # transformers adds it up in float32
            assert mine == pytest.approx({name: other[name] for name in mine}, rel=1e-9)
        assert found[name]["evaluated"] == pytest.approx(one["evaluated"], rel=1e-6)


def test_a_prior_that_is_the_adapter_switched_off_is_one_on_two_ranks(ranks: list[Found], tmp_path: Path) -> None:
    one = two_ranks.adapted(tmp_path)
    assert any("lora_B" in name and tensor.any() for name, tensor in one["weights"].items())
    for found in ranks:
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(found["adapter"]["weights"][name], tensor, atol=1e-9, rtol=1e-7)
        assert found["adapter"]["evaluated"] == pytest.approx(one["evaluated"], rel=1e-9)

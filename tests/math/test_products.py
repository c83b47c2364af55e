"""Products of the output layer: the same numbers from every library, and the faster one of them without being asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qtarget
from qtarget.math import products
from qtarget.run import doctor
from qtarget.train import fp32_products

N, D, V = 24, 40, 70


@pytest.fixture(params=products.LIBRARIES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Pinned, and products of any size go through it."""
    monkeypatch.setattr(products, "SMALL", 1)
    products.pin(request.param)
    yield request.param
    products.pin(None)


def world(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(N, D, generator=generator), torch.randn(V, D, generator=generator)
    return left.to(dtype), right.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_product_is_that_of_float64(library: str, dtype: torch.dtype) -> None:
    left, right = world(dtype)
    exact = left.double() @ right.double().T
    got, out = products.product(left, right), torch.empty(N, V, dtype=dtype)
    assert torch.equal(got, products.product(left, right, out))
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.double(),
        exact,
        rtol=2e-2 if dtype == torch.bfloat16 else 1e-5,
        atol=1e-1 if dtype == torch.bfloat16 else 1e-4,
    )


def test_products_add_up_in_fp32_and_the_first_counts_for_what_was_there(library: str) -> None:
    left, right = world(torch.float32)
    total = torch.full((V, D), torch.nan)
    products.add_product(total, right[:, :N], left.T, is_first=True)
    products.add_product(total, right[:, :N], left.T, is_first=False)
    torch.testing.assert_close(total.double(), 2 * right[:, :N].double() @ left.double(), rtol=1e-5, atol=1e-4)
    halves = left.bfloat16(), right.bfloat16()
    products.add_product(total, halves[1][:, :N], halves[0].T, is_first=True)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, (halves[1][:, :N] @ halves[0]).float(), rtol=0, atol=0)


def test_a_loss_is_the_same_by_every_library(library: str) -> None:
    hidden, weight = world(torch.float32)
    labels = torch.arange(N)

    def made(dtype: torch.dtype) -> list[Tensor]:
        inputs = [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in (hidden, weight)]
        out = qtarget.linear_loss(*inputs, labels, qtarget.load_design("dft"), chunk_size=7)
        out.total.backward()
        return [out.loss, *(tensor.grad for tensor in inputs if tensor.grad is not None)]

    for got, exact in zip(made(torch.float32), made(torch.float64), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_graph_is_kept_where_one_is_wanted(library: str) -> None:
    left, right = world(torch.float32)
    products.product(left.requires_grad_(), right).sum().backward()
    assert left.grad is not None


def test_the_compiler_knows_the_shape_of_a_product_by_onednn() -> None:
    """What torch.compile assumes of the operator is what it does: [n, K], [m, K] → [n, m]."""
    torch.library.opcheck(products._onednn, world(torch.float32), test_utils="test_faketensor")


def test_the_trial_is_of_this_machine_and_for_each_number_of_threads() -> None:
    products.pin(None)
    assert products.library() in products.LIBRARIES
    assert products.library() == products.faster(torch.get_num_threads())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QTARGET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / fp32_products.FILE


def test_a_trial_is_made_once_on_a_machine(cache: Path) -> None:
    first = fp32_products.faster_here()
    (key, kept), *others = json.loads(cache.read_text()).items()
    assert (kept, others) == (first, [])
    assert key.endswith(f", {torch.get_num_threads()} threads, torch {torch.__version__}")
    other = next(name for name in products.LIBRARIES if name != first)
    cache.write_text(json.dumps({key: other, "another processor": first}))
    assert fp32_products.faster_here() == other
    cache.write_text(json.dumps({"another processor": other}))
    assert fp32_products.faster_here() == first
    assert json.loads(cache.read_text()) == {"another processor": other, key: first}


def test_doctor_tells_the_choice_without_making_a_trial(cache: Path) -> None:
    assert "what a trial at the first run here finds faster" in doctor._output_layer()
    assert not cache.exists()
    chosen = fp32_products.faster_here()
    assert f"fp32 by {chosen}, which a trial here found faster" in doctor._output_layer()


@pytest.mark.parametrize("damage", ["", "[1]", '{"a": ', "\x00"])
def test_a_damaged_file_is_measured_anew(cache: Path, damage: str) -> None:
    first = fp32_products.faster_here()
    cache.write_text(damage)
    assert fp32_products.faster_here() == first
    assert list(json.loads(cache.read_text()).values()) == [first]

"""int8_product: exact for every width, though what multiplies takes few of them."""

from dataclasses import replace

import pytest
import torch

from lorahub_edge.errors import InvalidInput
from lorahub_edge.kernels.int8_product import PRODUCTS, int8_product


@pytest.fixture(params=PRODUCTS)
def strict(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A product that refuses what cuBLASLt refuses, as the CPU's does not."""
    product = PRODUCTS[request.param]

    def multiply(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        widths = (len(w), w.shape[1], x.shape[1])
        if len(x) < product.least_rows or any(n == 0 or n % product.multiple for n in widths) or not w.is_contiguous():
            raise RuntimeError(f"CUBLAS_STATUS_NOT_SUPPORTED: {len(x)} rows, widths {widths}")
        return torch._int_mm(x, w.t())

    monkeypatch.setitem(PRODUCTS, request.param, replace(product, multiply=multiply))
    monkeypatch.setenv("LORAHUB_EDGE_INT8_PRODUCT", request.param)
    return str(request.param)


@pytest.mark.parametrize("n_rows", [0, 1, 16, 17, 40])
@pytest.mark.parametrize("in_features", [1, 8, 12, 257])
@pytest.mark.parametrize("out_features", [1, 3, 8, 12, 30, 257])
@pytest.mark.usefixtures("strict")
def test_is_exact_for_every_width(n_rows: int, in_features: int, out_features: int) -> None:
    random = torch.Generator().manual_seed(n_rows + in_features)
    x = torch.randint(-127, 128, (n_rows, in_features), generator=random, dtype=torch.int8)
    w = torch.randint(-127, 128, (out_features, in_features), generator=random, dtype=torch.int8)
    got = int8_product(x, w)
    assert got.dtype == torch.int32
    assert got.is_contiguous()
    assert torch.equal(got.double(), x.double() @ w.double().T)


def test_a_fitting_product_is_not_copied(strict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = torch.zeros(40, 16, dtype=torch.int32)
    monkeypatch.setitem(PRODUCTS, strict, replace(PRODUCTS[strict], multiply=lambda *_: made))
    ones = torch.ones(40, 8, dtype=torch.int8)
    assert int8_product(ones, torch.ones(16, 8, dtype=torch.int8)).data_ptr() == made.data_ptr()


def test_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_EDGE_INT8_PRODUCT", "cutlass")
    ones = torch.ones(4, 4, dtype=torch.int8)
    with pytest.raises(InvalidInput, match="expected one of bitsandbytes, torch, fused, received 'cutlass'"):
        int8_product(ones, ones)

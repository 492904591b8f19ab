"""Products in bfloat16: which layers, what error, on what processors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmo_core.batch import Batch
from medmo_core.models.medmo import MedMO
from medmo_core.modules.blocks import blocks_of
from medmo_recipes.training.model import bfloat16_products
from medmo_recipes.training.model.bfloat16_products import Bfloat16Linear, multiplies_bfloat16, multiply_in_bfloat16

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def has_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine can multiply bfloat16, fast or not."""
    monkeypatch.setattr(bfloat16_products, "multiplies_bfloat16", lambda device: True)


def converted(layer: nn.Linear) -> nn.Linear:
    assert multiply_in_bfloat16([layer], CPU) == 1
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24)])
def test_products_and_gradients_are_those_of_rounded_factors(bias: bool, shape: tuple[int, ...]) -> None:
    """Against float64: factors rounded to 8 bits, sums exact, and results rounded once more."""
    torch.manual_seed(0)
    layer, x, grad = converted(nn.Linear(24, 40, bias=bias)), torch.randn(shape), torch.randn(*shape[:-1], 40)
    x.requires_grad_()
    out = layer(x)
    out.backward(grad)
    assert out.dtype == torch.float32 and x.grad is not None and layer.weight.grad is not None
    narrow_x, narrow_w, narrow_g = (t.detach().bfloat16().double() for t in (x, layer.weight, grad))
    zero = torch.zeros(40, dtype=torch.float64)
    expected = F.linear(narrow_x, narrow_w) + (layer.bias.detach().double() if bias else zero)
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=2**-6)
    torch.testing.assert_close(x.grad.double(), narrow_g @ narrow_w, rtol=2**-8, atol=2**-6)
    of_weight = narrow_g.flatten(0, -2).mT @ narrow_x.flatten(0, -2)
    torch.testing.assert_close(layer.weight.grad.double(), of_weight, rtol=2**-8, atol=2**-6)
    if bias:
        assert layer.bias.grad is not None
        torch.testing.assert_close(layer.bias.grad, grad.flatten(0, -2).sum(0))


def test_what_does_not_train_gets_no_gradient() -> None:
    layer = converted(nn.Linear(8, 4)).requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None and layer.bias.grad is None


def test_loss_and_gradients_of_a_model_stay_near_and_names_stay(model_and_batch: tuple[MedMO, Batch]) -> None:
    model, batch = model_and_batch
    names = list(model.state_dict())
    exact = model.loss(batch)
    exact.backward()
    wanted: dict[str, Tensor] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    blocks = [*blocks_of(model.decoder), *blocks_of(model.model.visual)]
    count = multiply_in_bfloat16(blocks, CPU)
    assert count == sum(isinstance(module, nn.Linear) for block in blocks for module in block.modules())
    assert count == sum(type(module) is Bfloat16Linear for module in model.modules())
    assert list(model.state_dict()) == names
    loss = model.loss(batch)
    loss.backward()
    assert loss.item() != exact.item() and loss.item() == pytest.approx(exact.item(), rel=1e-3)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.cosine_similarity(parameter.grad.flatten(), wanted[name].flatten(), dim=0) > 0.999, name


def test_other_types_and_processors_without_units_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert multiply_in_bfloat16([nn.Linear(4, 4, dtype=torch.float64)], CPU) == 0
    monkeypatch.setattr(bfloat16_products, "multiplies_bfloat16", lambda device: False)
    assert multiply_in_bfloat16([nn.Linear(4, 4)], CPU) == 0


@pytest.mark.parametrize(
    ("units", "expected"), [({}, False), ({"avx512_bf16": False}, False), ({"amx_bf16": True}, True)]
)
def test_units_for_bfloat16_are_asked_for(
    units: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert multiplies_bfloat16.__wrapped__("cpu") is expected
    assert multiplies_bfloat16.__wrapped__("cuda") and not multiplies_bfloat16.__wrapped__("mps")

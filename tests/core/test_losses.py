"""The chunked head against the plain one."""

import pytest
import torch
import torch.nn.functional as F

from medmo_core.losses import linear_cross_entropy as head
from medmo_core.losses import token_logprobs

DENSE_LOGITS = "medmo_core.losses.chunked_head.DENSE_LOGITS"


def draw(rows: int = 37, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 12, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(101, 12, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, 101, (rows,), generator=generator)


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, inputs, retain_graph=True)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_chunks_equal_the_plain_loss(monkeypatch: pytest.MonkeyPatch, reduction: str) -> None:
    hidden, weight, targets = draw()
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction=reduction)
    monkeypatch.setattr(DENSE_LOGITS, 505)
    chunked = head(hidden, weight, targets, reduction)
    torch.testing.assert_close(chunked, plain)
    torch.testing.assert_close(gradients(2 * chunked, hidden, weight), gradients(2 * plain, hidden, weight))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_token_logprobs_equal_log_softmax(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    hidden, weight, targets = draw()
    plain = ((hidden @ weight.T) / temperature).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    whole = token_logprobs(hidden, weight, targets, temperature)
    monkeypatch.setattr(DENSE_LOGITS, 505)
    chunked = token_logprobs(hidden, weight, targets, temperature)
    factors = torch.linspace(-1, 1, len(targets), dtype=torch.float64)
    for mine in (whole, chunked):
        torch.testing.assert_close(mine, plain)
        torch.testing.assert_close(
            gradients((mine * factors).sum(), hidden, weight), gradients((plain * factors).sum(), hidden, weight)
        )


@pytest.mark.parametrize("limit", [505, 2**20], ids=["chunks", "whole"])
def test_half_precision_sums_in_fp32(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(DENSE_LOGITS, limit)
    hidden, weight, targets = draw(dtype=torch.bfloat16)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, targets)
    assert token_logprobs(hidden, weight, targets).dtype == torch.float32
    loss = head(hidden, weight, targets)
    assert loss.dtype == torch.float32
    assert abs(loss.double() - exact) < 2e-3 * exact


def test_wrong_settings_are_refused() -> None:
    hidden, weight, targets = draw()
    with pytest.raises(ValueError, match="'none'"):
        head(hidden, weight, targets, "none")
    with pytest.raises(ValueError, match="temperature must be positive"):
        token_logprobs(hidden, weight, targets, 0.0)

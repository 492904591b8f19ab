"""The chunked head against the plain one."""

import pytest
import torch
import torch.nn.functional as F

from medmo_core.losses import linear_cross_entropy as head
from medmo_core.losses import linear_token_losses, token_logprobs

DENSE_LOGITS = "medmo_core.losses.chunked_head.DENSE_LOGITS"


def random_inputs(
    rows: int = 37, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 12, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(101, 12, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, 101, (rows,), generator=generator)


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, inputs, retain_graph=True)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_chunks_equal_the_plain_loss(monkeypatch: pytest.MonkeyPatch, reduction: str) -> None:
    hidden, weight, targets = random_inputs()
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction=reduction)
    monkeypatch.setattr(DENSE_LOGITS, 505)
    chunked = head(hidden, weight, targets, reduction)
    torch.testing.assert_close(chunked, plain)
    torch.testing.assert_close(gradients(2 * chunked, hidden, weight), gradients(2 * plain, hidden, weight))


@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize("limit", [505, 2**20], ids=["chunks", "whole"])
def test_the_sum_its_rows_and_the_z_loss_equal_the_dense_reference(
    monkeypatch: pytest.MonkeyPatch, z_loss: float, limit: int
) -> None:
    hidden, weight, targets = random_inputs()
    logits = hidden @ weight.T
    rows = F.cross_entropy(logits, targets, reduction="none")
    term = z_loss * logits.logsumexp(-1).square().sum()
    monkeypatch.setattr(DENSE_LOGITS, limit)
    got = linear_token_losses(hidden, weight, targets, z_loss=z_loss, accuracy=True)
    plain = rows.sum() + term
    torch.testing.assert_close(got.total, plain)
    torch.testing.assert_close(gradients(got.total / 7, hidden, weight), gradients(plain / 7, hidden, weight))
    torch.testing.assert_close(got.cross_entropy, rows.detach())
    torch.testing.assert_close(got.z_loss, term.detach())
    assert got.correct is not None and torch.equal(got.correct, logits.argmax(-1) == targets)
    assert not any(part.requires_grad for part in (got.cross_entropy, got.z_loss, got.correct))
    assert linear_token_losses(hidden, weight, targets).correct is None
    if z_loss:  # the comparison would notice a forgotten term
        with pytest.raises(AssertionError):
            torch.testing.assert_close(linear_token_losses(hidden, weight, targets).total, plain)


def test_no_row_is_no_loss_and_no_nan() -> None:
    hidden, weight, targets = random_inputs(0)
    got = linear_token_losses(hidden, weight, targets, z_loss=0.1, accuracy=True)
    got.total.backward()
    assert got.total == got.z_loss == 0 and got.cross_entropy.shape == (0,) and got.correct.shape == (0,)
    assert hidden.grad is not None and head(hidden, weight, targets) == 0


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_token_logprobs_equal_log_softmax(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    hidden, weight, targets = random_inputs()
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
    hidden, weight, targets = random_inputs(dtype=torch.bfloat16)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, targets)
    assert token_logprobs(hidden, weight, targets).dtype == torch.float32
    loss = head(hidden, weight, targets)
    assert loss.dtype == torch.float32
    assert abs(loss.double() - exact) < 2e-3 * exact


def test_wrong_settings_are_refused() -> None:
    hidden, weight, targets = random_inputs()
    with pytest.raises(ValueError, match="'none'"):
        head(hidden, weight, targets, "none")
    with pytest.raises(ValueError, match="temperature must be positive"):
        token_logprobs(hidden, weight, targets, 0.0)

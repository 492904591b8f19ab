"""Attention supervision against its formula written out, one look at a time."""

import math

import pytest
import torch
from torch import Tensor

from medmo_core.losses.attention_supervision import attention_losses

Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def case(seed: int, dtype: torch.dtype = torch.float64) -> Case:
    """Six looks over ten tokens, of which 2 to 7 are visual; the last two looks should find nothing."""
    torch.manual_seed(seed)
    query, key = torch.randn(6, 8, dtype=dtype), torch.randn(10, 8, dtype=dtype)
    seen = torch.rand(6, 10) < 0.7
    seen[:, 0] = True
    is_visual = torch.zeros(10, dtype=torch.bool)
    is_visual[2:8] = True
    cover = torch.rand(6, 10, dtype=dtype) * seen * is_visual * (torch.rand(6, 10) < 0.6)
    cover[4:] = 0
    return query, key, seen, cover, is_visual


def written_out(query: Tensor, key: Tensor, seen: Tensor, cover: Tensor, is_visual: Tensor) -> list[float]:
    losses = []
    for look in range(len(query)):
        tokens = [t for t in range(len(key)) if seen[look, t]]
        powers = {t: math.exp(float(query[look] @ key[t]) / math.sqrt(query.shape[1])) for t in tokens}
        attention = {t: power / sum(powers.values()) for t, power in powers.items()}
        whole = float(cover[look].sum())
        if whole == 0:
            losses.append(-math.log(1 - sum(attention[t] for t in tokens if is_visual[t])))
            continue
        shares = {t: float(cover[look, t]) / whole for t in tokens}
        losses.append(sum(p * math.log(p / attention[t]) for t, p in shares.items() if p > 0))
    return losses


@pytest.mark.parametrize("seed", range(5))
def test_losses_are_the_formula(seed: int) -> None:
    given = case(seed)
    expected = torch.tensor(written_out(*given), dtype=torch.float64)
    torch.testing.assert_close(attention_losses(*given), expected, rtol=1e-12, atol=1e-12)
    assert bool((expected > 0).all())


def test_gradients_are_those_of_finite_differences() -> None:
    query, key, seen, cover, is_visual = case(0)
    query.requires_grad_()
    key.requires_grad_()
    for given in (cover, cover.float()):  # a batch has its covers in fp32
        assert torch.autograd.gradcheck(lambda q, k, c=given: attention_losses(q, k, seen, c, is_visual), (query, key))


def test_attention_as_wanted_costs_nothing() -> None:
    """A head of many dimensions whose logits are the logarithm of the cover."""
    cover = torch.tensor([[0.0, 0.5, 0.25, 0.25]], dtype=torch.float64)
    key = torch.eye(4, dtype=torch.float64)
    query = 2.0 * cover.clamp(min=1e-30).log()  # 2: the square root of the width
    seen, is_visual = torch.ones(1, 4, dtype=torch.bool), torch.tensor([False, True, True, True])
    assert attention_losses(query, key, seen, cover, is_visual).item() == pytest.approx(0.0, abs=1e-12)
    nothing = torch.zeros_like(cover)
    away = torch.tensor([[80.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert attention_losses(away, key, seen, nothing, is_visual).item() == pytest.approx(0.0, abs=1e-12)


def test_what_a_look_does_not_see_has_no_part_in_it() -> None:
    query, key, seen, cover, is_visual = case(1)
    other = torch.where(seen.all(0)[:, None], key, key + 5.0)
    for look in range(len(query)):
        hidden = ~seen[look]
        changed = torch.where(hidden[:, None], key + 7.0, key)
        row = slice(look, look + 1)
        arguments = seen[row], cover[row], is_visual
        torch.testing.assert_close(
            attention_losses(query[row], changed, *arguments), attention_losses(query[row], key, *arguments)
        )
    assert not torch.allclose(
        attention_losses(query, other, seen, cover, is_visual), attention_losses(query, key, seen, cover, is_visual)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_err_by_their_inputs_alone(dtype: torch.dtype) -> None:
    query, key, seen, cover, is_visual = case(2)
    narrow = attention_losses(query.to(dtype), key.to(dtype), seen, cover.float(), is_visual)
    wide = attention_losses(query.to(dtype).double(), key.to(dtype).double(), seen, cover.float().double(), is_visual)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-6)


def test_far_logits_stay_finite_with_their_gradients() -> None:
    query, key, seen, cover, is_visual = case(3, torch.float32)
    query = (query * 1e4).requires_grad_()
    losses = attention_losses(query, key, seen, cover, is_visual)
    losses.sum().backward()
    assert bool(losses.isfinite().all()) and query.grad is not None and bool(query.grad.isfinite().all())

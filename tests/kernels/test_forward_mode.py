"""A forward-mode derivative is right or refused; it never reads 0 because an op lost it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import medmo_kernels as ops
from medmo_kernels.projector import projector_reference

BOXES = torch.tensor([[0.0, 0.0, 4.0, 3.0], [1.0, 1.0, 5.0, 6.0]])
HEADS, WEIGHT, TABLE = torch.ones(3, 2, 8), torch.ones(8), torch.ones(3, 4)
CACHE, BOUNDS = torch.ones(3, 2, 5, 8), torch.tensor([0, 3], dtype=torch.int32)
COUNTS = torch.tensor([0, 2])

REFUSED: dict[str, tuple[Callable[[Tensor], object], Tensor]] = {
    "giou": (lambda x: ops.giou(x, BOXES), BOXES),
    "box_terms": (lambda x: ops.box_terms(BOXES, x), BOXES),
    "pairwise_giou": (lambda x: ops.pairwise_giou(x, BOXES), BOXES),
    "pairwise_box_terms": (lambda x: ops.pairwise_box_terms(x, BOXES, COUNTS, COUNTS, max_target=2), BOXES),
    "qk_norm_rope": (lambda x: ops.qk_norm_rope(HEADS, x, WEIGHT, WEIGHT, TABLE, TABLE), HEADS),
    "qk_norm_rope_": (lambda x: ops.qk_norm_rope_(HEADS.clone(), HEADS.clone(), x, WEIGHT, TABLE, TABLE), WEIGHT),
    "decode_attention": (lambda x: ops.decode_attention(x, CACHE, CACHE), HEADS),
    "patch_embed": (
        lambda x: ops.patch_embed(torch.zeros(2, 12, dtype=torch.uint8), x, torch.zeros(3)),
        torch.ones(3, 3, 2, 2),
    ),
    "attention": (lambda x: ops.attention(x, HEADS, HEADS, BOUNDS, causal=True), HEADS),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tangent_that_would_be_lost_is_refused(name: str) -> None:
    call, x = REFUSED[name]
    with pytest.raises(NotImplementedError, match=r"forward-mode|forward AD"):
        torch.func.jvp(call, (x.clone(),), (torch.ones_like(x),))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"forward-mode|forward AD"):
        call(forward_ad.make_dual(x.clone(), torch.ones_like(x)))


def test_tensors_without_tangent_may_be_used_inside() -> None:
    def call(x: Tensor) -> Tensor:
        return x * ops.giou(BOXES, BOXES).sum()

    assert torch.func.jvp(call, (torch.ones(1),), (torch.ones(1),))[1] == 2


def test_plain_layers_have_their_derivative() -> None:
    sizes = ((8,), (8,), (16, 32), (16,), (4, 16), (4,))
    weights = [ops.ProjectorWeights(*(torch.rand(size, dtype=torch.float64) for size in sizes))]
    features = torch.rand(8, 8, dtype=torch.float64)
    forms = (ops.projector, projector_reference)
    tangents = [torch.func.jvp(lambda x, f=f: f([x], weights)[0], (features,), (features,))[1] for f in forms]
    assert torch.allclose(tangents[0], tangents[1]) and tangents[0].abs().max() > 0

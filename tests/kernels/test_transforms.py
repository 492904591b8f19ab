"""Calls that are traced, cast or differentiated by torch's own means come out right, or are refused in words.

A forward-mode derivative never reads 0 because an op lost it.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

import medmo_kernels as ops
from medmo_core import modules
from medmo_kernels import runtime
from medmo_kernels.attention.sdpa import attention_by_segments
from medmo_kernels.projector import projector_reference

BOXES = torch.tensor([[0.0, 0.0, 4.0, 3.0], [1.0, 1.0, 5.0, 6.0]])
HEADS, WEIGHT, TABLE = torch.ones(3, 2, 8), torch.ones(8), torch.ones(3, 4)
CACHE, BOUNDS = torch.ones(3, 2, 5, 8), torch.tensor([0, 3], dtype=torch.int32)
COUNTS, COLUMNS = torch.tensor([0, 2]), torch.tensor([4, 0, 5], dtype=torch.int32)

REFUSED: dict[str, tuple[Callable[[Tensor], object], Tensor]] = {
    "giou": (lambda x: ops.giou(x, BOXES), BOXES),
    "box_terms": (lambda x: ops.box_terms(BOXES, x), BOXES),
    "pairwise_giou": (lambda x: ops.pairwise_giou(x, BOXES), BOXES),
    "pairwise_box_terms": (lambda x: ops.pairwise_box_terms(x, BOXES, COUNTS, COUNTS, max_target=2), BOXES),
    "qk_norm_rope": (lambda x: ops.qk_norm_rope(HEADS, x, WEIGHT, WEIGHT, TABLE, TABLE), HEADS),
    "qk_norm_rope_": (lambda x: ops.qk_norm_rope_(HEADS.clone(), HEADS.clone(), x, WEIGHT, TABLE, TABLE), WEIGHT),
    "qk_norm_rope_cache_": (
        lambda x: ops.qk_norm_rope_cache_(
            HEADS.clone(), x, HEADS, WEIGHT, WEIGHT, TABLE, TABLE, CACHE.clone(), CACHE.clone(), COLUMNS
        ),
        HEADS,
    ),
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


NO_FUNCTORCH = {
    name: REFUSED[name] for name in REFUSED
    if name not in ("qk_norm_rope_", "qk_norm_rope_cache_", "decode_attention", "attention")
}


@pytest.mark.parametrize("name", NO_FUNCTORCH)
def test_torch_func_is_told_what_to_use(name: str) -> None:
    call, x = NO_FUNCTORCH[name]

    def first(x: Tensor) -> Tensor:
        result: Any = call(x)
        return (result if isinstance(result, Tensor) else result[0]).sum()

    with pytest.raises(NotImplementedError, match=rf"{name} .*torch.func .*torch.autograd.grad"):
        torch.func.grad(first)(x.clone())


@pytest.mark.parametrize("rope", [None, (TABLE, 2 * TABLE)])
def test_attention_on_the_cpu_has_its_derivative(rope: tuple[Tensor, Tensor] | None) -> None:
    def loss(x: Tensor) -> Tensor:
        return ops.attention(x, HEADS, x + 1, BOUNDS, causal=True, rope=rope).square().sum()

    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), torch.autograd.grad(loss(x), x)[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda table: ops.attention(HEADS, HEADS, HEADS, BOUNDS, causal=True, rope=(TABLE, table)).sum(),
        lambda table: ops.qk_norm_rope(HEADS, HEADS, WEIGHT, WEIGHT, table, TABLE)[0].sum(),
        lambda table: ops.qk_norm_rope_(HEADS.clone(), HEADS.clone(), WEIGHT, WEIGHT, table, TABLE)[0].sum(),
    ],
)
def test_a_gradient_of_rotary_tables_is_refused(call: Callable[[Tensor], Tensor]) -> None:
    """It would be lost, or read 0 under torch.func."""
    with pytest.raises(RuntimeError, match="gradient|backward"):
        call(TABLE.clone().requires_grad_())
    with pytest.raises(RuntimeError, match=r"rotary tables|torch\.func|backward"):
        torch.func.grad(call)(TABLE.clone())
    with torch.no_grad():
        call(TABLE.clone().requires_grad_())


def module(kind: str) -> nn.Module:
    torch.manual_seed(0)
    built: dict[str, Callable[[], nn.Module]] = {
        "MLP": lambda: modules.MLP(8, 16),
        "SwiGLU": lambda: modules.SwiGLU(8, 16),
        "RMSNorm": lambda: modules.RMSNorm(8),
        "PatchEmbed": lambda: modules.PatchEmbed(2, 2, 8),
        "PatchMerger": lambda: modules.PatchMerger(8, 6, 2),
        "Projector": lambda: modules.Projector(8, 6, num_deepstack=1),
        "VisionAttention": lambda: modules.VisionAttention(8, 2),
        "TextAttention": lambda: modules.TextAttention(8, 2, 1, 8),
    }
    return built[kind]()


X, PIXELS = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(96).view(8, 12).byte()
PLACES, POSITIONS = torch.rand(8, 2, generator=torch.Generator().manual_seed(2)), torch.ones(4, 8)
TWO = torch.tensor([0, 3, 8], dtype=torch.int32)
ANGLES = (torch.rand(8, 4, generator=torch.Generator().manual_seed(3)), torch.ones(8, 4))
NEXT = torch.tensor([-1, 0], dtype=torch.int32)
INPUTS: dict[str, tuple[Any, ...]] = {
    "MLP": (X,),
    "SwiGLU": (X,),
    "RMSNorm": (X,),
    "PatchEmbed": (PIXELS, POSITIONS, PLACES),
    "PatchMerger": (X,),
    "Projector": (X, [X + 1]),
    "VisionAttention": (X, TWO, (ANGLES[0][:, :2], ANGLES[1][:, :2])),
    "TextAttention": (X, TWO, ANGLES, None, NEXT),
}
RAGGED = torch.tensor([0, 1, 2])
OPS: dict[str, Callable[[], Any]] = {
    "giou": lambda: ops.giou(BOXES, BOXES),
    "box_terms": lambda: ops.box_terms(BOXES, BOXES),
    "pairwise_giou": lambda: ops.pairwise_giou(BOXES, BOXES),
    "pairwise_box_terms": lambda: ops.pairwise_box_terms(BOXES, BOXES, RAGGED, RAGGED, max_target=2),
    "box_match": lambda: ops.box_match(BOXES, BOXES, RAGGED, RAGGED),
    "box_reward": lambda: tuple(ops.box_reward(BOXES, BOXES, RAGGED, RAGGED)),
    "assign": lambda: ops.assign(BOXES[None]),
    "decode_attention": lambda: ops.decode_attention(HEADS, CACHE, CACHE, COLUMNS),
    "qk_norm_rope_cache_": lambda: ops.qk_norm_rope_cache_(
        HEADS.clone(), HEADS, HEADS, WEIGHT, WEIGHT, TABLE, TABLE, CACHE.clone(), CACHE.clone(), COLUMNS
    ),
}
MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def fullgraph(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def tensors_of(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [x for part in result for x in tensors_of(part)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", INPUTS)
def test_every_module_is_one_graph(kind: str, mode: str) -> None:
    """The same result, and the same gradients of every parameter."""
    eager, compiled, found = module(kind), module(kind), []
    for forward, owner in ((eager, eager), (fullgraph(compiled), compiled)):
        with MODES[mode]():
            result = forward(*INPUTS[kind])
        outputs = tensors_of(result)
        if mode == "grad":
            sum(out.square().sum() for out in outputs).backward()
        found.append([*outputs, *(parameter.grad for parameter in owner.parameters())])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("name", OPS)
def test_every_op_is_one_graph(name: str) -> None:
    torch.testing.assert_close(fullgraph(OPS[name])(), OPS[name]())


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_kernels_are_part_of_the_graph(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form in place among them, and boundaries on the host."""
    pytest.importorskip("triton")
    monkeypatch.setenv(runtime.SWITCH, "triton")
    torch.manual_seed(0)
    attend, x, tables = modules.TextAttention(64, 1, 1, 64), torch.randn(8, 64), (torch.ones(8, 32), torch.ones(8, 32))
    with MODES[mode]():
        torch.testing.assert_close(fullgraph(attend)(x, TWO, tables)[0], attend(x, TWO, tables)[0])


def test_offsets_are_checked_when_a_graph_runs() -> None:
    call = fullgraph(lambda offsets: ops.pairwise_box_terms(BOXES, BOXES, offsets, offsets, max_target=2))
    with pytest.raises(ValueError, match=r"pred_offsets is \[0, 1, 3\]"):
        call(torch.tensor([0, 1, 3]))


def test_boundaries_are_checked_when_a_graph_runs() -> None:
    call = fullgraph(lambda bounds: ops.attention(HEADS, HEADS, HEADS, bounds, causal=True))
    with pytest.raises(ValueError, match="ends at 4, the batch has 3 tokens"):
        call(torch.tensor([0, 4], dtype=torch.int32))


@pytest.mark.parametrize(("prompts", "rope"), [(None, None), (None, ANGLES), (NEXT, ANGLES)])
def test_attention_of_traces_is_registered(prompts: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> None:
    query, key, value = (x.requires_grad_() for x in torch.randn(3, 8, 2, 8, dtype=torch.float64))
    tables = (None, None) if rope is None else rope
    torch.library.opcheck(attention_by_segments, (query, key, value, TWO, prompts, *tables, True, 0.3))
    traced = attention_by_segments(query, key, value, TWO, prompts, *tables, True, 0.3)
    eager = ops.attention(query, key, value, TWO, True, 0.3, prompt_of=prompts, rope=rope)
    torch.testing.assert_close(traced, eager)
    both = [torch.autograd.grad(out.square().sum(), (query, key, value)) for out in (traced, eager)]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("kind", INPUTS)
def test_every_module_runs_without_numbers(kind: str) -> None:
    expected: Any = module(kind)(*INPUTS[kind])

    def on_meta(x: Any) -> Any:
        return (
            x.to("meta") if isinstance(x, Tensor) else type(x)(map(on_meta, x)) if isinstance(x, (tuple, list)) else x
        )

    result: Any = module(kind).to("meta")(*map(on_meta, INPUTS[kind]))
    if not isinstance(result, Tensor):
        result, expected = result[0], expected[0]
    assert result.is_meta and result.shape == expected.shape and result.dtype == expected.dtype


@pytest.mark.parametrize("kind", INPUTS)
def test_autocast_gives_the_dtype_of_linear_layers(kind: str) -> None:
    """Parameters stay in fp32, and receive their gradients in fp32."""
    layer = module(kind)
    with torch.autocast("cpu", torch.bfloat16):
        result: Any = layer(*INPUTS[kind])
        expected = X.dtype if kind == "RMSNorm" else F.linear(X, X).dtype
    first = result if isinstance(result, Tensor) else result[0]
    assert first.dtype == expected
    first.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}


def test_autocast_brings_attention_to_one_dtype() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ops.attention(HEADS, HEADS, HEADS.bfloat16(), BOUNDS, causal=True)
        wide = ops.attention(HEADS.double(), HEADS.double(), HEADS.double(), BOUNDS, causal=True)
        step = ops.decode_attention(HEADS, CACHE.bfloat16(), CACHE)
    assert mixed.dtype == step.dtype == torch.bfloat16 and wide.dtype == torch.float64

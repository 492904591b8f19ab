"""qk_norm_rope against transformers' Qwen3-VL, against the laws of norms and rotations, on views, and in place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medmo_core.modules import TextAttention, apply_rope, mrope_table
from medmo_kernels import runtime, tables
from medmo_kernels.qk_norm_rope import qk_norm_rope, qk_norm_rope_, qk_norm_rope_cache_, qk_norm_rope_reference

SECTIONS, THETA = (24, 20, 20), 5e6

Heads = tuple[Tensor, Tensor, Tensor, Tensor]


def random_inputs(
    num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, seed: int = 0
) -> Heads:
    generator = torch.Generator().manual_seed(seed)
    shapes = (num_tokens, num_heads, head_dim), (num_tokens, num_kv_heads, head_dim), (head_dim,), (head_dim,)
    q, k, wq, wk = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, wq, wk


def table_of(num_tokens: int, head_dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    angles = torch.rand(num_tokens, head_dim // 2, generator=torch.Generator().manual_seed(seed)) * 6.3
    return angles.cos(), angles.sin()


@pytest.fixture
def triton_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv(runtime.SWITCH, "triton")


def published(heads: Heads, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """q_norm, k_norm and rotation as transformers' Qwen3-VL computes them in `dtype`."""
    qwen3_vl = pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl")
    configuration = pytest.importorskip("transformers.models.qwen3_vl.configuration_qwen3_vl")
    q, k, wq, wk = (x.to(dtype) for x in heads)
    rope = {"rope_type": "default", "rope_theta": THETA, "mrope_section": list(SECTIONS), "mrope_interleaved": True}
    config = configuration.Qwen3VLTextConfig(head_dim=q.shape[-1], rope_parameters=rope)
    norms = [qwen3_vl.Qwen3VLTextRMSNorm(q.shape[-1], eps=1e-6).to(dtype) for _ in range(2)]
    for norm, weight in zip(norms, (wq, wk), strict=True):
        norm.weight = torch.nn.Parameter(weight.detach(), requires_grad=False)
    cos, sin = qwen3_vl.Qwen3VLTextRotaryEmbedding(config)(q, position_ids[:, None])
    q_1HTD, k_1KTD = (norm(x).transpose(0, 1)[None] for norm, x in zip(norms, (q, k), strict=True))
    rotated = qwen3_vl.apply_rotary_pos_emb(q_1HTD, k_1KTD, cos, sin)
    return rotated[0][0].transpose(0, 1), rotated[1][0].transpose(0, 1)


POSITIONS = torch.tensor(
    [[0, 1, 2, 2, 2, 2, 4000, 4001], [0, 1, 2, 2, 3, 3, 4000, 4001], [0, 1, 2, 3, 2, 3, 4000, 4001]]
)


def test_equals_the_published_text_attention() -> None:
    heads = random_inputs(8, 4, 2, 128, torch.float32)
    leaves = [x.clone().requires_grad_() for x in heads[:2]]
    cos, sin = mrope_table(POSITIONS, 128, THETA, SECTIONS)
    ours = qk_norm_rope(leaves[0], leaves[1], heads[2], heads[3], cos, sin)
    theirs = published((leaves[0], leaves[1], heads[2], heads[3]), POSITIONS, torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=4e-6)
    gradients = [torch.autograd.grad(sum((x**3).sum() for x in out), leaves) for out in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


def test_sixteen_bits_are_nearer_to_the_truth_than_the_published_order_of_casts() -> None:
    heads = random_inputs(8, 16, 4, 128, torch.bfloat16)
    cos, sin = mrope_table(POSITIONS, 128, THETA, SECTIONS)
    wide = tuple(x.double() for x in heads)
    truth = qk_norm_rope_reference(*wide, cos.double(), sin.double())
    ours, theirs = qk_norm_rope(*heads, cos, sin), published(heads, POSITIONS, torch.bfloat16)
    for got, other, exact in zip(ours, theirs, truth, strict=True):
        assert (got.double() - exact).square().mean() < 0.5 * (other.double() - exact).square().mean()


def test_equals_the_modules_it_replaced() -> None:
    q, k, wq, wk = random_inputs(9, 4, 2, 64, torch.float64)
    table = table_of(9, 64)
    norm = torch.nn.functional.rms_norm
    expected = tuple(apply_rope(norm(x, w.shape, w, 1e-5), table) for x, w in ((q, wq), (k, wk)))
    torch.testing.assert_close(qk_norm_rope(q, k, wq, wk, *table, eps=1e-5), expected)


SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 40).map(lambda n: 2 * n))


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(0, 1000))
def test_rotation_keeps_the_norm_of_every_head(shape: tuple[int, int, int, int], seed: int) -> None:
    q, k, wq, wk = random_inputs(*shape, torch.float64, seed)
    out = qk_norm_rope(q, k, wq, wk, *table_of(shape[0], shape[3], seed))
    for got, x, weight in ((out[0], q, wq), (out[1], k, wk)):
        normalised = torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-6)
        torch.testing.assert_close(got.norm(dim=-1), normalised.norm(dim=-1))


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(0, 1000))
def test_rotating_back_undoes_the_rotation(shape: tuple[int, int, int, int], seed: int) -> None:
    q, k, wq, wk = random_inputs(*shape, torch.float64, seed)
    cos, sin = table_of(shape[0], shape[3], seed)
    turned = qk_norm_rope(q, k, wq, wk, cos, sin)
    straight = qk_norm_rope(q, k, wq, wk, torch.ones_like(cos), torch.zeros_like(sin))
    back = tuple(apply_rope(x, (cos, -sin)) for x in turned)
    torch.testing.assert_close(back, straight, rtol=1e-6, atol=1e-6)  # cos**2 + sin**2 = 1 in fp32 only


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.randoms(use_true_random=False))
def test_tokens_do_not_know_one_another(shape: tuple[int, int, int, int], random: Any) -> None:
    q, k, wq, wk = random_inputs(*shape, torch.float32)
    cos, sin = table_of(shape[0], shape[3])
    order = list(range(shape[0]))
    random.shuffle(order)
    whole = qk_norm_rope(q, k, wq, wk, cos, sin)
    shuffled = qk_norm_rope(q[order], k[order], wq, wk, cos[order], sin[order])
    torch.testing.assert_close(shuffled, tuple(x[order] for x in whole), rtol=1e-6, atol=1e-6)


def test_a_head_of_zeros_stays_zero_and_passes_a_finite_gradient() -> None:
    q, k, wq, wk = random_inputs(2, 2, 1, 8, torch.float32)
    leaf = (q * 0).requires_grad_()
    out, _ = qk_norm_rope(leaf, k, wq, wk, *table_of(2, 8))
    (gradient,) = torch.autograd.grad(out.sum(), leaf)
    assert not out.any() and gradient.isfinite().all() and gradient.any()


def test_second_derivatives_are_refused() -> None:
    q, k, wq, wk = random_inputs(2, 2, 1, 8, torch.float64)
    leaf = q.requires_grad_()
    out, _ = qk_norm_rope(leaf, k, wq, wk, *table_of(2, 8))
    (gradient,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.autograd.grad(gradient.sum(), leaf)


def fused(num_tokens: int, head_dim: int, requires_grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """One projection of 4 + 2 + 2 heads, and the queries and keys that are views of it."""
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(num_tokens, 8 * head_dim, generator=generator).requires_grad_(requires_grad)
    q, k, _ = qkv.unflatten(1, (8, head_dim)).split((4, 2, 2), dim=1)
    return qkv, q, k


def check_views() -> None:
    qkv, q, k = fused(5, 72, requires_grad=True)
    _, _, wq, wk = random_inputs(5, 4, 2, 72, torch.float32)
    table = table_of(5, 72)
    out = qk_norm_rope(q, k, wq, wk, *table)
    assert all(x.is_contiguous() for x in out)
    expected = qk_norm_rope_reference(q, k, wq, wk, *table)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-6)
    transposed = torch.randn(4, 5, 72, generator=torch.Generator().manual_seed(1)).transpose(0, 1)  # a strided gradient
    gradients = [torch.autograd.grad((x[0] * transposed).sum() + x[1].square().sum(), qkv) for x in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def check_in_place() -> None:
    qkv, q, k = fused(5, 72)
    _, _, wq, wk = random_inputs(5, 4, 2, 72, torch.float32)
    table = table_of(5, 72)
    values = qkv[:, 6 * 72 :].clone()
    expected = qk_norm_rope(q, k, wq, wk, *table)
    out = qk_norm_rope_(q, k, wq, wk, *table)
    assert out[0] is q and out[1] is k
    torch.testing.assert_close((q, k), expected, rtol=0, atol=0)
    assert torch.equal(qkv[:, 6 * 72 :], values), "the values beside them are not touched"


def check_in_place_with_tokens_behind_one_another() -> None:
    q, k, wq, wk = random_inputs(5, 4, 2, 72, torch.float32)
    table = table_of(5, 72)
    expected = qk_norm_rope(q, k, wq, wk, *table)
    apart = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k)]  # heads first in memory
    out = qk_norm_rope_(*apart, wq, wk, *table)
    assert out[0] is apart[0] and out[1] is apart[1]
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def check_into_cache() -> None:
    """Keys and values get where the columns say, in caches of any strides, and nothing else is written."""
    qkv, q, k = fused(5, 72)
    value = qkv[:, 6 * 72 :].view(5, 2, 72)
    _, _, wq, wk = random_inputs(5, 4, 2, 72, torch.float32)
    table, columns = table_of(5, 72), torch.tensor([3, 0, -1, 4, 2**31 - 1], dtype=torch.int32)
    for lies in ((0, 1, 2, 3), (0, 2, 1, 3)):
        _, query, _ = fused(5, 72)
        if lies[1] == 2:
            query = query.transpose(0, 1).contiguous().transpose(0, 1)  # heads first in memory
        caches = [torch.full((5, 2, 4, 72), 7.0) for _ in range(2)]
        caches = [x.permute(lies).contiguous().permute(lies) for x in caches]
        expected = [x.clone() for x in caches]
        turned = qk_norm_rope(query, k, wq, wk, *table)
        for row in (0, 1):
            expected[0][row, :, columns[row]], expected[1][row, :, columns[row]] = turned[1][row], value[row]
        before = qkv.clone()
        out = qk_norm_rope_cache_(query, k, value, wq, wk, *table, *caches, columns)
        assert out is query and torch.equal(out, turned[0]) and torch.equal(qkv, before)
        assert torch.equal(caches[0], expected[0]) and torch.equal(caches[1], expected[1])


def check_frozen_weights() -> None:
    q, k, wq, wk = random_inputs(6, 4, 2, 64, torch.float32)
    table = table_of(6, 64)
    results = []
    for learn in (False, True):
        leaves = [q.clone().requires_grad_(), k.clone().requires_grad_()]
        weights = [w.clone().requires_grad_(learn) for w in (wq, wk)]
        out = qk_norm_rope(leaves[0], leaves[1], weights[0], weights[1], *table)
        sum(x.square().sum() for x in out).backward()
        assert all((w.grad is not None) == learn for w in weights)
        results.append([x.grad for x in leaves])
    torch.testing.assert_close(*results, rtol=0, atol=0)


CHECKS = [
    check_views,
    check_in_place,
    check_in_place_with_tokens_behind_one_another,
    check_into_cache,
    check_frozen_weights,
]


@pytest.mark.parametrize("check", CHECKS)
def test_plain(check: Callable[[], None]) -> None:
    check()


@pytest.mark.usefixtures("triton_mode")
@pytest.mark.parametrize("check", CHECKS)
def test_kernels(check: Callable[[], None]) -> None:
    check()


@pytest.mark.usefixtures("triton_mode")
def test_kernels_in_runs_of_several_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with thousands of tokens: each program walks over some, the last over fewer, and adds up its own share."""
    shipped = tables.launch_row
    monkeypatch.setattr(
        tables, "launch_row", lambda *args, **key: {**shipped(*args, **key), "launch": {"max_runs": 3}}
    )
    heads, table = random_inputs(8, 3, 1, 32, torch.float32), table_of(8, 32)
    results = []
    for function in (qk_norm_rope, qk_norm_rope_reference):
        leaves = [x.clone().requires_grad_() for x in heads]
        out = function(*leaves, *table)
        results.append((*out, *torch.autograd.grad(sum((x**3).sum() for x in out), leaves)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-4)


def test_in_place_refuses_to_lose_a_gradient() -> None:
    q, k, wq, wk = random_inputs(2, 2, 1, 8, torch.float32)
    table = table_of(2, 8)
    with pytest.raises(RuntimeError, match="keeps nothing for a backward pass"):
        qk_norm_rope_(q, k, wq.requires_grad_(), wk, *table)
    with torch.no_grad():
        qk_norm_rope_(q, k, wq, wk, *table)
    with pytest.raises(ValueError, match=r"the last must be 1"):
        qk_norm_rope_(torch.zeros(2, 8, 2).transpose(1, 2), k, wk, wk, *table)


CACHE = torch.zeros(2, 1, 3, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"value": torch.zeros(2, 2, 8)},
        {"value": torch.zeros(2, 1, 8).half()},
        {"key_cache": torch.zeros(2, 1, 4, 8)},
        {"key_cache": torch.zeros(1, 1, 3, 8), "value_cache": torch.zeros(1, 1, 3, 8)},
        {"value_cache": torch.zeros(2, 1, 8, 3).transpose(2, 3)},
        {"columns": torch.zeros(2, dtype=torch.int64)},
        {"columns": torch.zeros(3, dtype=torch.int32)},
        {"columns": torch.zeros(2, dtype=torch.int32, device="meta")},
        {"query": torch.zeros(2, 8, 2).transpose(1, 2)},
    ],
)
def test_a_cache_that_does_not_fit_is_refused(change: dict[str, Tensor]) -> None:
    q, k, wq, wk = random_inputs(2, 2, 1, 8, torch.float32)
    cos, sin = table_of(2, 8)
    given = {"query": q, "key": k, "value": k, "query_weight": wq, "key_weight": wk, "cos": cos, "sin": sin}
    given |= {"key_cache": CACHE, "value_cache": CACHE, "columns": torch.zeros(2, dtype=torch.int32)}
    with pytest.raises(ValueError, match=r"qk_norm_rope: value .* columns .* \(2, 1, 8\), then \(2, 1, S, 8\)"):
        qk_norm_rope_cache_(**(given | change))
    with pytest.raises(RuntimeError, match="qk_norm_rope_cache_ keeps nothing for a backward pass"):
        qk_norm_rope_cache_(**(given | {"query": q.clone().requires_grad_()}))


def test_a_graph_notices_that_its_tensors_were_overwritten() -> None:
    q, k, wq, wk = random_inputs(2, 2, 1, 8, torch.float32)
    factor = torch.ones((), requires_grad=True)
    product = (factor * q).sum()  # keeps q
    qk_norm_rope_(q, k, wq, wk, *table_of(2, 8))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.zeros(3, 1, 8)}, r"query \(2, 2, 8\) and key \(3, 1, 8\)"),
        ({"query": torch.zeros(2, 2, 7), "key": torch.zeros(2, 1, 7)}, "head width 7 must be even"),
        ({"query": torch.zeros(2, 2, 258), "key": torch.zeros(2, 1, 258)}, "head width 258 must be even and at most"),
        ({"key_weight": torch.zeros(4)}, r"weights \(8,\) and \(4,\), heads 8 wide"),
        ({"cos": torch.zeros(2, 8)}, r"tables \(2, 8\) and \(2, 4\), expected \(2, 4\) twice"),
        ({"key": torch.zeros(2, 1, 8, dtype=torch.float64)}, "query is torch.float32 and key is torch.float64"),
        (dict.fromkeys(("query", "key"), torch.ones(2, 1, 8, dtype=torch.int32)), "expected floats of one dtype"),
        ({"sin": torch.zeros(2, 4, device="meta")}, "query is on cpu, sin on meta: expected one device"),
    ],
)
def test_refusals(change: dict[str, Tensor], message: str) -> None:
    names = ("query", "key", "query_weight", "key_weight", "cos", "sin")
    arguments = dict(zip(names, (*random_inputs(2, 2, 1, 8, torch.float32), *table_of(2, 8)), strict=True))
    with pytest.raises(ValueError, match=message):
        qk_norm_rope(**(arguments | change))


def test_text_attention_gives_the_same_with_and_without_gradients() -> None:
    torch.manual_seed(0)
    module = TextAttention(32, 4, 2, 16)
    x, table = torch.randn(7, 32), table_of(7, 16)
    kept = x.clone()
    recorded = module.project(x, table)
    with torch.no_grad():
        in_place = module.project(x, table)
    with torch.inference_mode():
        inferred = module.project(x, table)
    torch.testing.assert_close(in_place, recorded)
    torch.testing.assert_close(inferred, recorded)
    assert torch.equal(x, kept)

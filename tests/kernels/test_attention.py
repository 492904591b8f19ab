"""Laws of packed attention: documents, shared prompts, rotary positions; the plain form and the Triton code."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medmo_kernels import runtime, verify
from medmo_kernels.attention import attention, attention_reference
from medmo_kernels.attention.cases import SPECS, Size
from medmo_kernels.attention.op import choices
from medmo_kernels.attention.reference import turned
from medmo_kernels.attention.sdpa_plan import MAX_WASTE_RATIO, SHORT_RUN, plan_of

families_of = st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=5), min_size=1, max_size=3)
lengths_of = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(sum)


def bounds_of(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


def random_inputs(total: int, heads: int = 4, kv_heads: int = 2, width: int = 8, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(total)
    return [
        torch.randn(total, count, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for count in (heads, kv_heads, kv_heads)
    ]


def angles(total: int, width: int) -> tuple[Tensor, Tensor]:
    turns = torch.rand(total, width // 2, generator=torch.Generator().manual_seed(1)) * 6.3
    return turns.cos(), turns.sin()


def gradients(out: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).sin().view_as(out)
    return torch.autograd.grad((out * weights).sum(), leaves)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(lengths=lengths_of, causal=st.booleans())
def test_packed_equals_separate(lengths: list[int], causal: bool) -> None:
    leaves = random_inputs(sum(lengths))
    out = attention(*leaves, bounds_of(lengths), causal)
    parts = zip(*(x.split(lengths) for x in leaves), strict=True)
    close(out, torch.cat([attention(*part, bounds_of([len(part[0])]), causal) for part in parts if len(part[0])]))


@settings(max_examples=30, deadline=None)
@given(lengths=lengths_of, causal=st.booleans(), seed=st.integers(0, 99))
def test_permuted_documents_give_permuted_rows(lengths: list[int], causal: bool, seed: int) -> None:
    leaves = random_inputs(sum(lengths))
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = torch.cat([torch.arange(sum(lengths)).split(lengths)[n] for n in order])
    out = attention(*leaves, bounds_of(lengths), causal)
    close(attention(*(x[rows] for x in leaves), bounds_of([lengths[n] for n in order]), causal), out[rows])


def test_strided_views_equal_copies() -> None:
    fused = torch.randn(11, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    out = attention(*fused.unbind(1), bounds_of([4, 7]), True)
    expected = attention(*(x.contiguous() for x in fused.unbind(1)), bounds_of([4, 7]), True)
    close(out, expected)
    close(gradients(out, [fused])[0], gradients(expected, [fused])[0])


def unshared(lengths: Sequence[int], prompts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Copy every prompt before each of its branches: rows to take, boundaries, rows of the result to keep."""
    rows = torch.arange(sum(lengths)).split(list(lengths))
    copies = [torch.cat([rows[p], rows[n]]) if p >= 0 else rows[n] for n, p in enumerate(prompts)]
    kept = [torch.arange(len(c)) >= len(c) - len(rows[n]) for n, c in enumerate(copies)]
    return torch.cat(copies), bounds_of([len(c) for c in copies]), torch.cat(kept)


def families(sizes: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Lay out families of (prompt, branch, ..., branch): lengths and prompts."""
    lengths: list[int] = []
    prompts: list[int] = []
    for prompt, *branches in sizes:
        prompts += [-1, *[len(lengths)] * len(branches)]
        lengths += [prompt, *branches]
    return lengths, prompts


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=5), min_size=1, max_size=3), rotary=st.booleans()
)
def test_one_prompt_with_branches_equals_as_many_sequences(sizes: list[list[int]], rotary: bool) -> None:
    """Values and all gradients; that of a prompt is the sum over its copies."""
    lengths, prompts = families(sizes)
    leaves = random_inputs(sum(lengths))
    rows, bounds, kept = unshared(lengths, prompts)
    rope = angles(sum(lengths), 8) if rotary else None
    out = attention(*leaves, bounds_of(lengths), True, prompt_of=torch.tensor(prompts), rope=rope)
    copied = tuple(part[rows] for part in rope) if rope else None
    expected = attention_reference(*(x[rows] for x in leaves), bounds, True, rope=copied)[kept]
    close(out, expected)
    for got, wanted in zip(gradients(out, leaves), gradients(expected, leaves), strict=True):
        close(got, wanted)


def test_long_branches_take_several_runs() -> None:
    lengths, prompts = families([[40, 150, 200, 90, 3, 2, 1]])
    plan = plan_of(tuple(bounds_of(lengths).tolist()), True, torch.device("cpu"), tuple(prompts))
    assert len(plan.runs) > 1
    for run in plan.runs:
        wasted = 1 - run.mask.double().mean().item() * 2
        assert run.mask.shape[0] <= SHORT_RUN or run.mask.shape[0] in lengths or wasted <= MAX_WASTE_RATIO
    leaves = random_inputs(sum(lengths), 2, 1, 4)
    arguments = (*leaves, bounds_of(lengths), True)
    out, expected = (f(*arguments, prompt_of=torch.tensor(prompts)) for f in (attention, attention_reference))
    close(out, expected)
    for got, wanted in zip(gradients(out, leaves), gradients(expected, leaves), strict=True):
        close(got, wanted)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([0, -1, -1], "branches must follow their prompt"),
        ([-1, 2, -1], "branches must follow their prompt"),
        ([-1, -1, 0], "branches must follow their prompt"),
        ([-1, 0, 1], "has a prompt itself"),
        ([-1, 0], r"prompt_of \(2,\), cu_seqlens \(4,\)"),
    ],
)
def test_wrong_prompts_are_refused(prompts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(*random_inputs(6), bounds_of([2, 2, 2]), True, prompt_of=torch.tensor(prompts))


def test_wrong_tensors_are_refused() -> None:
    query, key, value = random_inputs(6)
    bounds = bounds_of([6])
    with pytest.raises(ValueError, match="prompt_of needs causal"):
        attention(query, key, value, bounds, False, prompt_of=torch.tensor([-1]))
    with pytest.raises(ValueError, match=r"query \(6, 4, 8\), key \(5, 2, 8\)"):
        attention(query, key[:5], value, bounds, True)
    with pytest.raises(ValueError, match="expected one dtype"):
        attention(query, key.float(), value, bounds, True)
    with pytest.raises(ValueError, match="expected one dtype, of floats"):
        attention(query.int(), key.int(), value.int(), bounds, True)
    with pytest.raises(ValueError, match=r"rope \(6, 8\) and \(6, 8\) beside query \(6, 4, 8\)"):
        attention(query, key, value, bounds, True, rope=angles(6, 16))
    with pytest.raises(ValueError, match="must be positive"):
        attention(query, key, value, bounds, True, -1.0)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (torch.tensor([0, 5, 3, 6]), r"cu_seqlens is \[0, 5, 3, 6\], expected numbers that rise from 0 to 6"),
        (torch.tensor([2, 6]), "rise from 0 to 6"),
        (torch.tensor([-1, 6]), "rise from 0 to 6"),
        (torch.tensor([], dtype=torch.int32), "ends at nothing, the batch has 6 tokens"),
        (torch.tensor([0.0, 6.0]), r"cu_seqlens \(2,\) torch.float32; expected one axis of int32 or int64"),
        (torch.tensor([[0, 6]]), r"cu_seqlens \(1, 2\) torch.int64; expected one axis"),
    ],
)
def test_wrong_boundaries_are_refused(bounds: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(*random_inputs(6), bounds, True)


@pytest.mark.parametrize("causal", [False, True])
def test_rotation_inside_equals_rotation_before(causal: bool) -> None:
    leaves = random_inputs(9)
    rope = angles(9, 8)
    out = attention(*leaves, bounds_of([4, 5]), causal, rope=rope)
    expected = attention_reference(*(turned(x, *rope) for x in leaves[:2]), leaves[2], bounds_of([4, 5]), causal)
    close(out, expected)
    for got, wanted in zip(gradients(out, leaves), gradients(expected, leaves), strict=True):
        close(got, wanted)


def test_only_distances_matter() -> None:
    """Turning all tokens of a document further by one angle changes nothing."""
    leaves = random_inputs(7)
    turns = torch.arange(7)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.01], dtype=torch.float64)
    outs = [attention(*leaves, bounds_of([7]), True, rope=((turns + s).cos(), (turns + s).sin())) for s in (0.0, 2.0)]
    close(*outs)


@pytest.fixture
def triton_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv(runtime.SWITCH, "triton")


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.usefixtures("triton_mode")
def test_kernels_read_strided_views() -> None:
    """A fused projection whose rows are 8 elements apart, and one whose rows are not, which is copied."""
    for padding in (0, 4):
        fused = torch.randn(5, 3, 1, 72 + padding, device=DEVICE)[..., :72].requires_grad_()
        bounds = bounds_of([2, 3]).to(DEVICE)
        results = [f(*fused.unbind(1), bounds, True) for f in (attention, attention_reference)]
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(*(gradients(out, [fused])[0] for out in results), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("triton_mode")
def test_kernels_run_equal_bit_for_bit() -> None:
    spec = SPECS[0]
    size = Size([5, 3, 4], 2, 1, 64, True, [-1, 0, 0], True)
    arguments = verify.arguments_of(spec, size, torch.float32, DEVICE)
    first, second = (verify.run(spec, attention, arguments) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True))


@pytest.mark.usefixtures("triton_mode")
def test_more_segments_than_one_look_at_the_boundaries() -> None:
    """Programs count starts in chunks of 128."""
    lengths = [n % 3 for n in range(140)]
    leaves = random_inputs(sum(lengths), 1, 1, 64, torch.float32)
    prompts = torch.tensor([*[-1] * 131, *[130] * 9])
    arguments = (*(x.detach().to(DEVICE) for x in leaves), bounds_of(lengths).to(DEVICE), True)
    results = [f(*arguments, prompt_of=prompts.to(DEVICE)) for f in (attention, attention_reference)]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_choices_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = choices(torch.device("cpu"))
    assert {choice.backend for choice in on_cpu.values()} == {"sdpa"}
    monkeypatch.setenv(runtime.SWITCH, "triton")
    forced = choices(torch.device("cpu"))
    assert forced["shared prompts, head_dim 72"].backend == "triton"
    assert forced["causal, head_dim 96"].backend == "sdpa"
    assert dict(forced["causal, float64"].refused)["triton"] == "it has no kernels for torch.float64"

"""Laws of the projector: it is transformers' patch merger, mergers do not mix, and every row of the table is right."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from medmo_core.modules import PatchMerger, Projector
from medmo_kernels import back_ends, runtime, tables, verify
from medmo_kernels.projector import ProjectorWeights, op, projector, projector_reference
from medmo_kernels.projector.cases import SPECS, TOWER, listed

SPEC = SPECS[0]
FC1_ROWS = [row for row in tables.table("projector")["rows"] if row.get("kernel") == "fc1"]


def random_inputs(
    num_tokens: int, width: int, out: int, after_merge: Any, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[list[Tensor], list[ProjectorWeights]]:
    """Return features and weights as leaves that learn."""
    generator = torch.Generator().manual_seed(seed)
    features, weights = listed(SPEC.make((num_tokens, width, 4 * width, out, after_merge), generator, dtype))
    learn = [x.detach().clone().requires_grad_() for x in features]
    return learn, [ProjectorWeights(*(t.detach().clone().requires_grad_() for t in w)) for w in weights]


def gradients(outputs: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    total = sum((out.double() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outputs)
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, leaves))


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op runs its Triton kernels, in the interpreter."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the walker runs the kernels on the chip")
    monkeypatch.setenv(runtime.SWITCH, "triton")


def their_merger(after_merge: bool, width: int, out: int) -> nn.Module:
    modeling = pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl")
    config = SimpleNamespace(hidden_size=width, spatial_merge_size=2, out_hidden_size=out)
    return modeling.Qwen3VLVisionPatchMerger(config, use_postshuffle_norm=after_merge)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("after_merge", [False, True], ids=["main", "tap"])
def test_equals_transformers(after_merge: bool, dtype: torch.dtype) -> None:
    """Values and gradients; in bf16 our error against float64 is at most twice theirs, plus rounding."""
    torch.manual_seed(3)
    theirs = their_merger(after_merge, 32, 24)
    nn.init.normal_(theirs.norm.weight, 1, 0.3)
    nn.init.normal_(theirs.norm.bias)
    theirs = theirs.to(dtype)
    ours = PatchMerger(32, 24, 2, norm_after_merge=after_merge, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    exact = their_merger(after_merge, 32, 24).double()
    exact.load_state_dict({name: t.double() for name, t in theirs.state_dict().items()})
    x = (torch.randn(36, 32) + 0.5).to(dtype)

    found = []
    for merger in (ours, theirs, exact):
        features = x.to(next(merger.parameters()).dtype, copy=True).requires_grad_()
        out = merger(features)
        found.append([out, *gradients([out], [features, *merger.parameters()])])
    eps = {torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]
    for mine, other, truth in zip(*found, strict=True):
        error, plain = ((t.double() - truth).abs().max().item() for t in (mine, other))
        assert error <= 2 * plain + eps * max(1.0, truth.abs().max().item())


def test_placement_matters() -> None:
    """The oracle above distinguishes the two placements."""
    (x,), (w,) = random_inputs(3, 6, 5, (True,))
    patchwise = w._replace(norm_weight=w.norm_weight[:6], norm_bias=w.norm_bias[:6])
    assert (projector([x], [w])[0] - projector([x], [patchwise])[0]).abs().max() > 0.1


@settings(max_examples=20, deadline=None)
@given(
    num_tokens=st.integers(0, 9),
    width=st.integers(1, 9),
    after_merge=st.lists(st.booleans(), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_mergers_do_not_mix(num_tokens: int, width: int, after_merge: list[bool], seed: int) -> None:
    features, weights = random_inputs(num_tokens, width, 3, tuple(after_merge), seed=seed)
    together = projector(features, weights)
    alone = [projector([x], [w])[0] for x, w in zip(features, weights, strict=True)]
    torch.testing.assert_close(together, alone)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(7)), after_merge=st.booleans())
def test_permuted_tokens_give_permuted_rows(order: list[int], after_merge: bool) -> None:
    (x,), weights = random_inputs(7, 5, 3, (after_merge,))
    permuted = x.unflatten(0, (7, 4))[order].flatten(0, 1)
    torch.testing.assert_close(projector([permuted], weights)[0], projector([x], weights)[0][order])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("row", FC1_ROWS, ids=lambda row: "-".join(map(str, list(row.values())[:5])))
def test_every_row_of_the_table(row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shipped configuration, whatever number of tokens it is meant for."""
    shipped = tables.launch_row

    def chosen(*place: Any, **key: Any) -> Any:
        return row if key["kernel"] == "fc1" else shipped(*place, **key)

    monkeypatch.setattr(tables, "launch_row", chosen)
    dtype = torch.float32 if row["bits"] == 32 else torch.float16
    size = (5, 16, 72, 8, (False,) if row.get("mergers") == "one" else (True, False))
    with verify.poisoned():
        verify.check(SPEC, verify.arguments_of(SPEC, size, dtype))


def computed(function: str, x: Tensor) -> Tensor:
    """Return what a function of the kernels' GELU makes of numbers, as many as a power of two."""
    import triton
    import triton.language as tl

    from medmo_kernels.projector import triton_kernel_gelu as kernels

    @triton.jit
    def kernel(x, out, FUNCTION: tl.constexpr, SIZE: tl.constexpr):
        lanes = tl.arange(0, SIZE)
        tl.store(out + lanes, FUNCTION(tl.load(x + lanes)))

    out = torch.empty_like(x)
    kernel[(1,)](x, out, getattr(kernels, function), x.numel())
    return out


def exact_gelu(x: Tensor) -> Tensor:
    return torch.tensor([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x.tolist()], dtype=torch.float64)


@pytest.mark.usefixtures("interpreted")
def test_gelu_is_as_exact_as_the_form_with_erf() -> None:
    """In fp32, against math.erf in float64: a bound of its own, and never worse than torch's fp32 GELU at its worst."""
    x = torch.linspace(-14, 14, 1 << 16)
    truth, plain = exact_gelu(x), torch.nn.functional.gelu(x)
    error = (computed("gelu", x).double() - truth).abs()
    assert (error - 2**-24 * truth.abs()).max() <= 6e-8
    assert error.max() <= (plain.double() - truth).abs().max()
    ends = computed("gelu", torch.tensor([0.0, -3e38, 3e38, float("inf"), float("-inf"), float("nan"), 1e-30, -1e-30]))
    expected = torch.tensor([0, 0, 3e38, float("inf"), 0, float("nan"), 5e-31, -5e-31])
    torch.testing.assert_close(ends, expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.usefixtures("interpreted")
def test_slopes_of_gelu_are_as_exact_as_torchs() -> None:
    from medmo_kernels.projector import launch

    x = torch.linspace(-14, 14, 1 << 14).view(1, 128, 128)
    slope, leaf, wide = torch.ones_like(x), x.clone().requires_grad_(), x.double().requires_grad_()
    activated, _ = launch._gelu_backward(slope, x, True)
    (plain,) = torch.autograd.grad(torch.nn.functional.gelu(leaf).sum(), leaf)
    (truth,) = torch.autograd.grad(torch.nn.functional.gelu(wide).sum(), wide)
    assert (slope.double() - truth).abs().max() <= (plain.double() - truth).abs().max()
    value = exact_gelu(x.flatten())
    assert ((activated.double().flatten() - value).abs() - 2**-23 * value.abs()).max() <= 6e-8


@pytest.mark.usefixtures("interpreted")
def test_no_polynomial_of_its_degree_is_much_better_than_gelus() -> None:
    """The derivation: the least error of max(a, 1) Q(a), Q being 2 to the power of the polynomial."""
    a = 2.75 * (1 - torch.cos(torch.pi * (torch.arange(512, dtype=torch.float64) + 0.5) / 512))  # within 0 .. 5.5
    share = torch.special.ndtr(-a)
    found = (a.clamp(min=1) * (computed("beyond", a) - share)).abs().max().item()
    weight = (a.clamp(min=1) * share * math.log(2) * 1e7)[:, None]
    errors = weight * (a[:, None] / 5.5) ** torch.arange(1, 9)  # the first coefficient is -1: Q(0) = 1/2
    wanted = weight[:, 0] * (torch.special.log_ndtr(-a) / math.log(2) + 1)
    one = torch.ones(512, 1, dtype=torch.float64)
    rows = torch.cat([torch.cat([errors, -one], 1), torch.cat([-errors, -one], 1)])
    best = linprog([0] * 8 + [1], rows.numpy(), torch.cat([wanted, -wanted]).numpy(), bounds=[(None, None)] * 9)
    assert best.fun * 1e-7 <= found <= 1.25 * best.fun * 1e-7  # coefficients are rounded to fp32


@pytest.mark.usefixtures("interpreted")
def test_more_mergers_than_one_launch_takes() -> None:
    features, weights = random_inputs(2, 16, 3, (False, *TOWER), torch.float32)
    leaves = [*features, *(t for w in weights for t in w)]
    ours, expected = projector(features, weights), projector_reference(features, weights)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, leaves), gradients(expected, leaves))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("learns", ["features", "weights", "nothing", "one output"])
def test_only_what_learns_gets_a_gradient(learns: str) -> None:
    """Partial backwards: a frozen tower, a frozen projector, no gradient at all, an output that nobody used."""
    features, weights = random_inputs(3, 16, 4, (False, True), torch.float32)
    plain = [ProjectorWeights(*(t.detach() for t in w)) for w in weights]
    frozen = [x.detach() for x in features]
    expected = projector_reference(features, weights)
    if learns == "nothing":
        torch.testing.assert_close(projector(frozen, plain), [e.detach() for e in expected])
        return
    given = {"features": (features, plain), "weights": (frozen, weights), "one output": (features, weights)}[learns]
    leaves = features if learns == "features" else [t for w in weights for t in w]
    ours = projector(*given)
    if learns == "one output":
        ours, expected, leaves = ours[1:], expected[1:], [features[1], *weights[1]]
    torch.testing.assert_close(gradients(ours, leaves), gradients(expected, leaves))


@pytest.mark.usefixtures("interpreted")
def test_torch_accepts_the_registration() -> None:
    """Schema, fake tensors, autograd and tracing with dynamic shapes, of the op that the kernels serve."""
    features, weights = random_inputs(2, 16, 4, (False, True), torch.float32)
    lists = [features, *(list(column) for column in zip(*weights, strict=True))]
    torch.library.opcheck(op._projector, (*lists, 2, 1e-6, True))
    frozen = [[t.detach() for t in tensors] for tensors in lists]
    torch.library.opcheck(op._projector, (*frozen, 2, 1e-6, False))


def test_the_table_decides_on_a_gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.delenv(runtime.SWITCH, raising=False)
    monkeypatch.setattr(runtime, "triton_refusal", lambda device, dtype: "")
    monkeypatch.setattr(back_ends, "_on_host", lambda mode, device: False)
    back_ends._choose.cache_clear()
    request.addfinalizer(back_ends._choose.cache_clear)

    def chosen(num_tokens: int, after_merge: Any, width: int = 16, dtype: torch.dtype = torch.bfloat16) -> str:
        features, weights = random_inputs(num_tokens, width, 4, after_merge, dtype)
        return op._backend(features, weights, 2)

    pytest.importorskip("triton")
    assert chosen(256, (False,)) == "triton"
    assert chosen(257, (False,)) == "eager"
    assert chosen(256, TOWER) == "triton"
    assert chosen(257, TOWER) == "eager"  # until a GPU has measured it
    assert chosen(4, (False,), dtype=torch.float32) == "eager"
    assert chosen(4, (False,), width=24) == "eager"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert chosen(4, (False,)) == "eager"
    assert {choice.backend for choice in op.choices(torch.device("cpu")).values()} == {"triton", "eager"}


def test_projector_module_equals_its_mergers() -> None:
    torch.manual_seed(0)
    module = Projector(8, 6, num_deepstack=2, dtype=torch.float64)
    x, first, second = torch.randn(3, 12, 8, dtype=torch.float64)
    main, additions = module(x, [first, second])
    torch.testing.assert_close(main, module.merger(x))
    expected = [merger(tap) for merger, tap in zip(module.deepstack_merger_list, (first, second), strict=True)]
    torch.testing.assert_close(additions, expected)
    with pytest.raises(ValueError, match="2 features and 3 weights"):
        module(x, [first])


def test_swapped_and_hooked_layers_are_called() -> None:
    """Adapters swap a linear layer, tools hook it: the op must not pass them by."""

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    module = Projector(8, 6, num_deepstack=1)
    x = torch.randn(4, 8)
    before = module(x, [x])[0]
    seen: list[str] = []
    module.deepstack_merger_list[0].register_forward_hook(lambda *_: seen.append("merger"))
    module.merger.linear_fc2.register_forward_hook(lambda *_: seen.append("layer"))
    torch.testing.assert_close(module(x, [x])[0], before)
    assert sorted(seen) == ["layer", "merger"]
    doubled = Doubled(32, 6)
    doubled.load_state_dict(module.merger.linear_fc2.state_dict())
    module.merger.linear_fc2 = doubled
    torch.testing.assert_close(module(x, [x])[0], 2 * before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_weight": torch.ones(5)}, r"features \(8, 4\), norm_weight \(5,\): expected \(4,\) or \(16,\)"),
        ({"norm_bias": torch.ones(16)}, r"norm_bias \(16,\): expected \(4,\)"),
        ({"fc1_weight": torch.ones(16, 15)}, r"fc1_weight \(16, 15\): expected \(16, 16\)"),
        ({"fc1_bias": torch.ones(3)}, r"fc1_bias \(3,\): expected \(16,\)"),
        ({"fc2_weight": torch.ones(2, 9)}, r"fc2_weight \(2, 9\): expected \(2, 16\)"),
        ({"fc2_bias": torch.ones(2, dtype=torch.float64)}, r"features are torch.float32, other tensors torch.float64"),
    ],
)
def test_wrong_weights_are_refused(change: dict[str, Tensor], message: str) -> None:
    features, weights = random_inputs(2, 4, 2, (False,), torch.float32)
    with pytest.raises(ValueError, match=message):
        projector(features, [weights[0]._replace(**change)])


def test_wrong_features_are_refused() -> None:
    features, weights = random_inputs(2, 4, 2, (False, True), torch.float32)
    with pytest.raises(ValueError, match="1 features and 2 weights"):
        projector(features[:1], weights)
    with pytest.raises(ValueError, match=r"\(8, 4\), \(4, 4\): expected one shape \(N, C\)"):
        projector([features[0], features[1][:4]], weights)
    with pytest.raises(ValueError, match="7 patches do not make whole tokens of 4"):
        projector([x[:7] for x in features], weights)
    other = random_inputs(2, 4, 3, (False,), torch.float32)[1][0]
    with pytest.raises(ValueError, match=r"\(16, 16\) and \(2, 16\), \(16, 16\) and \(3, 16\): expected the same"):
        projector(features, [weights[0], other])

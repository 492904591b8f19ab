"""Liger behind our modules and losses: who is served, and the same results as without it.

Where there is no GPU Liger's kernels run in Triton's interpreter, on tiny sizes. The interpreter hands kernels Python
floats where the compiler hands them fp32 scalars, and has no `libdevice`; the fixture mends both. Its bf16 products are
wrong (it multiplies bit patterns), so bf16 waits for a GPU.
"""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medmo_core.losses import (
    chunked_head,
    grpo,
    linear_cross_entropy,
    linear_grpo_loss,
    linear_token_losses,
)
from medmo_core.losses.liger import _fused_function, liger_logprob_loss, liger_token_losses
from medmo_core.modules import RMSNorm, SwiGLU, backend, mlp, norm
from medmo_kernels import runtime

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
EPS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger serves every tensor."""
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    pytest.importorskip("triton", reason="triton is not installed")
    for module in (norm, mlp, chunked_head, grpo):
        monkeypatch.setattr(module, "uses_liger", lambda tensor: True)
    if DEVICE == "cpu":
        import liger_kernel.ops.rms_norm
        import numpy as np
        import triton.language as tl
        from triton.runtime import interpreter

        plain = interpreter._implicit_cvt

        def convert(argument: object) -> object:
            if not isinstance(argument, float):
                return plain(argument)
            return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)

        monkeypatch.setattr(interpreter, "_implicit_cvt", convert)
        monkeypatch.setattr(liger_kernel.ops.rms_norm, "rsqrt", lambda x: tl.rsqrt(x))


def random_inputs(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    return values.to(device=DEVICE, dtype=dtype).requires_grad_()


def outcome(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """The value and all gradients, one backward pass."""
    out = function(*leaves)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64, device=DEVICE).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out.double() * weights).sum(), leaves)]


def assert_as_good(ours: Callable[..., Tensor], plain: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    """Within twice the error of the plain form in the same dtype, plus a rounding."""
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for got, other, truth in zip(outcome(ours, leaves), outcome(plain, leaves), outcome(plain, wide), strict=True):
        error, bound = (got.double() - truth).abs().max(), 2 * (other.double() - truth).abs().max()
        assert error <= bound + EPS[leaves[0].dtype] * truth.abs().max().clamp(min=1)


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 16), (2, 2, 20)])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    module = RMSNorm(shape[-1], 1e-3)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"weight": weight}, x)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, 1e-3)

    x = random_inputs(*shape, dtype=dtype, scale=0.03)  # mean of squares near eps
    assert_as_good(ours, plain, [x, random_inputs(shape[-1], dtype=dtype, seed=1)])


@pytest.mark.usefixtures("liger")
def test_rms_norm_leaves_the_incoming_gradient_alone() -> None:
    x = random_inputs(3, 8, dtype=torch.float32)
    gradient = torch.ones(3, 8, device=DEVICE)
    RMSNorm(8, device=DEVICE)(x).backward(gradient)
    assert torch.equal(gradient, torch.ones_like(gradient))


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(dtype: torch.dtype) -> None:
    module = SwiGLU(12, 20)
    names = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")

    def ours(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), x)

    def plain(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    shapes = [(20, 12), (20, 12), (12, 20)]
    weights = [random_inputs(*shape, dtype=dtype, seed=i, scale=0.3) for i, shape in enumerate(shapes)]
    assert_as_good(ours, plain, [random_inputs(5, 12, dtype=dtype, seed=9), *weights])


def targets_of(num_rows: int, vocab: int = 37) -> Tensor:
    return torch.randint(0, vocab, (num_rows,), generator=torch.Generator().manual_seed(5)).to(DEVICE)


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_cross_entropy(reduction: str, dtype: torch.dtype) -> None:
    targets = targets_of(11)

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = F.linear(hidden, weight)
        return F.cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction=reduction
        )

    leaves = [random_inputs(11, 12, dtype=dtype), random_inputs(37, 12, dtype=dtype, seed=1)]
    assert linear_cross_entropy(*leaves, targets, reduction).dtype == torch.float32
    assert_as_good(lambda hidden, weight: linear_cross_entropy(hidden, weight, targets, reduction), plain, leaves)


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_z_loss_come_from_the_pass_that_makes_the_gradients(dtype: torch.dtype) -> None:
    """The sum with its gradients, and beside it each row's cross-entropy, the z-loss and what was guessed right."""
    targets, z_loss = targets_of(11), 1e-2

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = F.linear(hidden, weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, reduction="sum") + z_loss * logits.logsumexp(-1).square().sum()

    leaves = [random_inputs(11, 12, dtype=dtype), random_inputs(37, 12, dtype=dtype, seed=1)]
    assert_as_good(lambda h, w: linear_token_losses(h, w, targets, z_loss=z_loss).total, plain, leaves)
    got = linear_token_losses(*leaves, targets, z_loss=z_loss, accuracy=True)
    logits = F.linear(*(leaf.detach().double() for leaf in leaves))
    tolerance = 200 * EPS[dtype]  # half precision: logits of ten and the rounding of each z-loss
    torch.testing.assert_close(got.cross_entropy.double(), F.cross_entropy(logits, targets, reduction="none"),
                               rtol=tolerance, atol=tolerance)  # fmt: skip
    expected = z_loss * logits.logsumexp(-1).square().sum()
    torch.testing.assert_close(got.z_loss.double(), expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(got.total.detach(), got.cross_entropy.sum() + got.z_loss)
    assert got.correct is not None and torch.equal(got.correct, logits.argmax(-1) == targets)
    assert got.total.requires_grad and not got.cross_entropy.requires_grad and not got.z_loss.requires_grad


@pytest.mark.usefixtures("liger")
def test_a_head_learns_from_frozen_states_and_a_frozen_head_passes_gradients() -> None:
    """Liger alone drops the head's gradient when the states need none."""
    targets = targets_of(7)
    hidden, weight = random_inputs(7, 12, dtype=torch.float32), random_inputs(37, 12, dtype=torch.float32, seed=1)
    both = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), [hidden, weight])
    (head_alone,) = torch.autograd.grad(linear_cross_entropy(hidden.detach(), weight, targets), [weight])
    (states_alone,) = torch.autograd.grad(linear_cross_entropy(hidden, weight.detach(), targets), [hidden])
    torch.testing.assert_close((states_alone, head_alone), both)
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets).requires_grad


def test_no_rows_no_kernel() -> None:
    hidden, weight = random_inputs(0, 12, dtype=torch.float32), random_inputs(37, 12, dtype=torch.float32)
    nothing, rows = targets_of(0), torch.zeros(0, device=DEVICE)
    for loss in (
        linear_cross_entropy(hidden, weight, nothing),
        linear_grpo_loss(hidden, weight, nothing, rows, rows).total,
    ):
        loss.backward()
        assert loss == 0


CUDA = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hopper, as far as the rule asks."""
    monkeypatch.setattr(runtime, "triton_refusal", lambda device, dtype: "")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("device", "version", "mode", "refusal"),
    [
        (CUDA, "0.8.5", "auto", ""),
        (torch.device("cpu"), "0.8.5", "auto", "no CUDA device"),
        (CUDA, None, "auto", 'absent: pip install "medmo[cuda]"'),
        (CUDA, "0.7.1", "auto", "liger-kernel 0.7.1 is older than 0.8"),
        (CUDA, "0.8.5", "reference", "MEDMO_KERNELS=reference"),
    ],
)
def test_refusals(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, version: str | None, mode: str, refusal: str
) -> None:
    monkeypatch.setattr(backend, "liger_version", lambda: version)
    monkeypatch.setenv(runtime.SWITCH, mode)
    assert backend.liger_refusal(device) == refusal


class OnCuda:
    """What the rule asks of a tensor."""

    is_cuda, device = True, CUDA

    def __init__(self, dtype: torch.dtype = torch.bfloat16, count: int = 1) -> None:
        self.dtype, self.count = dtype, count

    def numel(self) -> int:
        return self.count


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_has_to_do_without_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "liger_version", lambda: None)
    backend._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="run PyTorch's own code: liger-kernel absent: pip install"):
        assert not backend.uses_liger(OnCuda())  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not backend.uses_liger(OnCuda())  # type: ignore[arg-type]
        assert not backend.uses_liger(torch.zeros(2))
    monkeypatch.setattr(backend, "liger_version", lambda: "0.8.5")
    assert backend.uses_liger(OnCuda())  # type: ignore[arg-type]
    assert not backend.uses_liger(OnCuda(torch.float64))  # type: ignore[arg-type]
    assert not backend.uses_liger(OnCuda(count=0))  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [liger_logprob_loss, liger_token_losses])
def test_absent_liger_names_the_extra(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Tensor]) -> None:
    for name in ("liger_kernel.ops", "liger_kernel.chunked_loss.grpo_loss"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    _fused_function.cache_clear()
    arguments = () if function is liger_token_losses else (lambda logps: (logps.sum(),), 1.0)
    with pytest.raises(ModuleNotFoundError, match=r"medmo\[cuda\]"):
        function(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1, dtype=torch.int64), *arguments)

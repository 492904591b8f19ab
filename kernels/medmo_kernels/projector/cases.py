"""Cases of projector for the walker, the compiler gate and the benchmark."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..spec import Arguments, Bench, Compile, Gate, OpSpec, Tolerance
from .op import BACK_ENDS, FEW_TOKENS, choices, projector, shape_class
from .reference import ProjectorWeights, projector_reference

MERGE_SIZE = 2
MAIN, TAP = False, True
TOWER = (MAIN, TAP, TAP, TAP)

INFERENCE = "inference"
"""Appended to a size: no gradient is wanted."""
Size = Sequence[Any]  # tokens, widths of a patch, the hidden layer and the decoder, each merger's placement


def _case(size: Size, generator: torch.Generator, dtype: torch.dtype) -> Arguments:
    """Make one stack of every parameter over the mergers; `listed` takes it apart."""
    num_tokens, width, hidden, out, after_merge, *rest = size
    num_mergers, merged = len(after_merge), width * MERGE_SIZE**2

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(num_mergers, *shape, generator=generator).mul_(scale).to(dtype)

    return {
        # Not centred: a norm that forgets the mean shows.
        "features": (normal(num_tokens * MERGE_SIZE**2, width) + 0.5).to(dtype),
        "norm_weight": (1 + normal(merged, scale=0.2)).to(dtype),
        "norm_bias": normal(merged, scale=0.2),
        "fc1_weight": normal(hidden, merged, scale=merged**-0.5),
        "fc1_bias": normal(hidden),
        "fc2_weight": normal(out, hidden, scale=hidden**-0.5),
        "fc2_bias": normal(out),
        "after_merge": tuple(after_merge),
        "inference": INFERENCE in rest,
    }


def listed(arguments: Arguments) -> tuple[list[Tensor], list[ProjectorWeights]]:
    """Return features and weights, merger by merger, of stacked or unstacked arguments."""
    stacks = [arguments[name] for name in ("features", *ProjectorWeights._fields)]
    features, *parameters = (stack.unbind(0) if isinstance(stack, Tensor) else stack for stack in stacks)
    width = features[0].shape[1]
    weights = []
    for after, norm_weight, norm_bias, *linears in zip(arguments["after_merge"], *parameters, strict=True):
        norm = (norm_weight, norm_bias) if after else (norm_weight[:width], norm_bias[:width])
        weights.append(ProjectorWeights(*norm, *linears))
    return list(features), weights


def _unstacked(arguments: Arguments) -> Arguments:
    """Give each merger its own tensors, as a model does: else gradients would be stacked inside the clock."""
    return {**arguments, **{name: list(arguments[name].unbind(0)) for name in _NAMES}}


def _on_stacks(function: Callable[..., list[Tensor]], **fault: Any) -> Callable[..., list[Tensor]]:
    """Return a merger function that takes its arguments as `_case` makes them."""

    def of_stacks(**arguments: Any) -> list[Tensor]:
        with torch.no_grad() if arguments["inference"] else nullcontext():
            return function(*listed(arguments), merge_size=MERGE_SIZE, **fault)

    of_stacks.__module__ = __name__
    return of_stacks


def _patchwise_everywhere(
    features: Sequence[Tensor], weights: Sequence[ProjectorWeights], *, merge_size: int
) -> list[Tensor]:
    """Normalise each patch, whatever the norm's width says."""
    width = features[0].shape[1]
    wrong = [w._replace(norm_weight=w.norm_weight[:width], norm_bias=w.norm_bias[:width]) for w in weights]
    return projector_reference(features, wrong, merge_size=merge_size)


def _shuffled_cells(
    features: Sequence[Tensor], weights: Sequence[ProjectorWeights], *, merge_size: int
) -> list[Tensor]:
    """Take the patches of a token in the wrong order."""
    turned = [x.unflatten(0, (-1, merge_size**2)).flip(1).flatten(0, 1) for x in features]
    return projector_reference(turned, weights, merge_size=merge_size)


def _first_weights_for_all(
    features: Sequence[Tensor], weights: Sequence[ProjectorWeights], *, merge_size: int
) -> list[Tensor]:
    """Give every merger the linear layers of the first."""
    first = weights[0]
    wrong = [ProjectorWeights(w.norm_weight, w.norm_bias, *first[2:]) for w in weights]
    return projector_reference(features, wrong, merge_size=merge_size)


def _tanh_gelu(features: Sequence[Tensor], weights: Sequence[ProjectorWeights], *, merge_size: int) -> list[Tensor]:
    """Use the approximation of GELU that the vision MLP uses."""
    out = []
    for x, w in zip(features, weights, strict=True):
        norm = (w.norm_weight.shape[0],)
        normal = torch.nn.functional.layer_norm(x.reshape(-1, *norm), norm, w.norm_weight, w.norm_bias, 1e-6)
        hidden = torch.nn.functional.linear(normal.view(-1, x.shape[1] * merge_size**2), w.fc1_weight, w.fc1_bias)
        activated = torch.nn.functional.gelu(hidden, approximate="tanh")
        out.append(torch.nn.functional.linear(activated, w.fc2_weight, w.fc2_bias))
    return out


def _shape_class(arguments: Arguments) -> str:
    num_mergers, num_patches, _ = arguments["features"].shape
    return shape_class(arguments["features"].dtype, num_patches // MERGE_SIZE**2, num_mergers)


def _kinds(size: Size) -> dict[str, Size]:
    """Return other numbers of tokens on the same side of the limit of few."""
    return {f"{n} tokens": (n, *size[1:]) for n in ((1, 17) if size[0] <= FEW_TOKENS else (257, 272))}


def _passes(kernel: str, numbers: Mapping[str, int]) -> int | None:
    """Count the tiles of BLOCK_K features in a normalised token."""
    return numbers["depth"] // numbers["BLOCK_K"] if kernel == "_fc1_gelu_kernel" else None


def _gate(kernel: str, constants: Mapping[str, Any]) -> Gate:
    return Gate(hgmma=kernel == "_fc1_gelu_kernel" and constants["INPUT_PRECISION"] != "ieee")


def _flops(arguments: Arguments) -> float:
    tokens = arguments["features"].shape[0] * arguments["features"].shape[1] / MERGE_SIZE**2
    return 2.0 * tokens * sum(arguments[name][0].numel() for name in ("fc1_weight", "fc2_weight"))


def _backward_flops(arguments: Arguments) -> float:
    """Count two products for each of the forward's: the gradients of its input and of its weight."""
    return 2.0 * _flops(arguments)


def _bytes(arguments: Arguments) -> float:
    """Count inputs and outputs once, and the activation between the two products written and read."""
    inputs = [value for value in arguments.values() if isinstance(value, Tensor)]
    tokens = arguments["features"].shape[0] * arguments["features"].shape[1] // MERGE_SIZE**2
    out, hidden = arguments["fc2_weight"].shape[1:]
    elements = sum(value.numel() for value in inputs) + tokens * (out + 2 * hidden)
    return float(elements * arguments["features"].element_size())


_NAMES = ("features", *ProjectorWeights._fields)
_16_BIT = "normalised vectors, activation and gradients are rounded to 16 bits between products as in eager: 3 units"

WIDTHS = {"8B": (1152, 4608, 4096), "4B": (1024, 4096, 2560)}
TOKENS = {1280: 1600, 512: 256, 768: 576}
"""Of a square image after merging, by its side in pixels."""
_TOWERS = {
    f"{model} tower, {side} px, {count} image{'s' * (count > 1)}": (count * TOKENS[side], *WIDTHS[model], TOWER)
    for side in TOKENS
    for count in (8, 1)
    for model in WIDTHS
}

SPECS = (
    OpSpec(
        name="projector",
        function=_on_stacks(projector),
        reference=_on_stacks(projector_reference),
        make=_case,
        sizes={
            "no token": (0, 16, 64, 8, (MAIN, TAP)),
            "one token": (1, 16, 64, 8, (MAIN,)),
            "tower": (7, 32, 128, 24, TOWER),
            "odd widths": (5, 6, 11, 7, (TAP, MAIN)),
        },
        tolerance={
            torch.float64: Tolerance(1e-12, "another order of summation"),
            torch.float32: Tolerance(2e-6, "another order of summation over at most 128 products, twice"),
            torch.float16: Tolerance(3e-3, _16_BIT),
            torch.bfloat16: Tolerance(2.4e-2, _16_BIT),
        },
        differentiable=_NAMES,
        faults={
            "norm before merging in a tap": _on_stacks(_patchwise_everywhere),
            "patches in the wrong order": _on_stacks(_shuffled_cells),
            "all mergers with one's layers": _on_stacks(_first_weights_for_all),
            "tanh GELU": _on_stacks(_tanh_gelu),
            "another eps": _on_stacks(projector_reference, eps=1e-4),
        },
        # tests/kernels/test_projector.py runs every row of the table.
        kernel_sizes={
            "no token": (0, 16, 64, 8, (MAIN, TAP)),
            "one merger": (5, 16, 40, 24, (MAIN,)),
            "ragged tiles": (67, 48, 72, 8, (TAP,)),
            "tower": (3, 16, 64, 8, TOWER),
        },
        choices=choices,
        back_ends=BACK_ENDS,
        shape_class=_shape_class,
        compile=Compile(
            # The widths that a kernel is compiled for are real ones; tokens, hidden and decoder's width are no
            # compile-time constants, and small because the CPU computes the products that belong to torch.
            sizes={
                "8B main, few tokens": ((16, 1152, 64, 16, (MAIN,)), torch.bfloat16),
                "8B tower, few tokens": ((16, 1152, 64, 16, TOWER), torch.bfloat16),
                "8B main, many tokens": ((272, 1152, 64, 16, (MAIN,)), torch.bfloat16),
                "8B tap, many tokens": ((272, 1152, 64, 16, (TAP,)), torch.bfloat16),
                "4B tower, many tokens": ((272, 1024, 64, 16, TOWER), torch.bfloat16),
                "8B tower, many tokens": ((272, 1152, 64, 16, TOWER), torch.bfloat16),
                "8B tower, few tokens, inference": ((16, 1152, 64, 16, TOWER, INFERENCE), torch.bfloat16),
                "8B tower, many tokens, inference": ((272, 1152, 64, 16, TOWER, INFERENCE), torch.bfloat16),
                "fp32": ((16, 32, 64, 16, TOWER), torch.float32),
            },
            gate=_gate,
            kinds=_kinds,
            passes=_passes,
        ),
        bench=Bench(
            sizes={
                **_TOWERS,
                "8B main, 1280 px, 8 images": (8 * 1600, *WIDTHS["8B"], (MAIN,)),
                "8B main, 1280 px, 1 image": (1600, *WIDTHS["8B"], (MAIN,)),
                "8B main, 512 px, 1 image": (256, *WIDTHS["8B"], (MAIN,)),
                "8B main, 256 px, 1 image": (64, *WIDTHS["8B"], (MAIN,)),
                "8B tap, 1280 px, 1 image": (1600, *WIDTHS["8B"], (TAP,)),
            },
            cpu_sizes={
                "a quarter of 4B's widths, main, 64 tokens": (64, 256, 1024, 640, (MAIN,)),
                "a quarter of 4B's widths, tower, 64 tokens": (64, 256, 1024, 640, TOWER),
            },
            timed_arguments=_unstacked,
            num_bytes=_bytes,
            num_flops=_flops,
            num_backward_flops=_backward_flops,
        ),
    ),
)

"""Known faults of some machines, their cost and their remedy: the part of `medmo doctor` that warns."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from medmo_kernels import runtime

from .optional import how_to_install

OLDEST_BFLOAT16 = 80
"""Capability of the first GPUs that compute in bf16."""


@dataclass(frozen=True)
class Finding:
    """One thing to know of this machine.

    Attributes:
        level: `PROBLEM` (act on it), `warning`, or `note`.
        text: what it is, what it costs, and what to do.
    """

    level: str
    text: str


def conv3d_finding(torch_version: str, cudnn: int | None, has_cuda: bool) -> Finding:
    """Judge how the stock patch embedding of transformers' Qwen3-VL, a Conv3d, fares here."""
    cure = "our own models run no convolution; medmo_core.accelerate(model) frees a transformers model of it"
    if torch_version.startswith("2.9.") and has_cuda:
        return Finding(
            "PROBLEM",
            f"torch {torch_version} runs Conv3d in bf16 without cuDNN: transformers' patch embedding takes 10 to "
            f"50,000 times longer (pytorch#166122): {cure}",
        )
    if has_cuda and cudnn is not None and 90800 <= cudnn < 91100:
        return Finding(
            "PROBLEM", f"cuDNN {cudnn}: Conv3d in bf16 can be wrong, without an error (pytorch#163539): {cure}"
        )
    return Finding(
        "note",
        f"transformers' patch embedding is a Conv3d: several times slower than a matrix product even where it is "
        f"healthy, 10 to 50,000 times on torch 2.9: {cure}",
    )


def environment_findings(interpreter: bool, mode: str, has_cuda: bool) -> list[Finding]:
    """Judge the switches that somebody may have left set."""
    found = []
    if interpreter and has_cuda:
        found.append(
            Finding(
                "PROBLEM",
                "TRITON_INTERPRET is set: every Triton kernel runs in Python, thousands of times slower, and bf16 "
                "matrix products are wrong there: unset it",
            )
        )
    elif interpreter:
        found.append(
            Finding(
                "note",
                "TRITON_INTERPRET is set: it matters only with MEDMO_KERNELS=triton, which tests kernels without a "
                "GPU; bf16 matrix products are wrong there, so --verify leaves bf16 out",
            )
        )
    if mode != "auto":
        found.append(
            Finding("warning", f"{runtime.SWITCH}={mode} overrules every choice: it is for bisecting, unset it to work")
        )
    if mode == "triton" and not has_cuda and not interpreter:
        found.append(Finding("PROBLEM", f"{runtime.SWITCH}=triton without a GPU needs TRITON_INTERPRET=1"))
    return found


def has_bfloat16(device: torch.device) -> bool:
    """Say whether ops compute in bf16 on a device: neither GPUs before Ampere do, nor Triton's interpreter."""
    on_gpu = device.type == "cuda"
    if runtime.interpreter_is_set() and (on_gpu or runtime.mode() == "triton"):
        return False
    return not on_gpu or runtime.capability(device) >= OLDEST_BFLOAT16


def bfloat16_findings(devices: Iterable[torch.device]) -> list[Finding]:
    """Name the GPUs that are too old for bf16."""
    return [
        Finding("warning", f"{device} has no bf16 (compute capability below 8.0): --verify leaves bf16 out there")
        for device in devices
        if device.type == "cuda" and runtime.capability(device) < OLDEST_BFLOAT16
    ]


def triton_finding(version: str | None, has_cuda: bool) -> Finding | None:
    """Judge the Triton that is installed."""
    oldest = ".".join(map(str, runtime.OLDEST_TRITON))
    level = "PROBLEM" if has_cuda else "note"
    if version is None:
        hint = how_to_install("cuda")
        return Finding(level, f"Triton is absent: on a GPU every op would run its reference: {hint}")
    if tuple(int(part) for part in version.split(".")[:2]) < runtime.OLDEST_TRITON:
        return Finding(level, f"Triton {version} is older than {oldest}: on a GPU every op would run its reference")
    return None


def uses_tf32() -> bool:
    """Say whether fp32 matrix products on CUDA run in TF32; the older flag must not be read once the newer is set."""
    own = torch.backends.cuda.matmul.fp32_precision
    everywhere = getattr(torch.backends, "fp32_precision", "none")
    return (everywhere if own == "none" else own) == "tf32"


def numerics_findings(tf32: bool, deterministic: bool) -> list[Finding]:
    """Judge global flags of torch that change results or speed."""
    found = []
    if tf32:
        found.append(Finding("warning", "TF32 is on for matrix products: fp32 results carry 3 digits, not 7"))
    if deterministic:
        found.append(
            Finding(
                "note",
                "deterministic algorithms are on: our ops are deterministic anyway; torch fills fresh memory and "
                "some ops of PyTorch slow down or refuse",
            )
        )
    return found


def findings() -> list[Finding]:
    """Return everything known to go wrong that concerns this machine."""
    has_cuda = torch.cuda.is_available()
    found = [
        *environment_findings(runtime.interpreter_is_set(), runtime.mode(), has_cuda),
        triton_finding(runtime.triton_version(), has_cuda),
        conv3d_finding(torch.__version__, torch.backends.cudnn.version(), has_cuda),
        *bfloat16_findings(torch.device("cuda", index) for index in range(torch.cuda.device_count())),
        *numerics_findings(has_cuda and uses_tf32(), torch.are_deterministic_algorithms_enabled()),
    ]
    if not runtime.has_native() and runtime.mode() != "reference":
        found.append(Finding("warning", f"native library {runtime.native_status()}: box matching runs in Python"))
    found.append(
        Finding(
            "note",
            "FlashAttention 2 and 3 compute heads of 72, 80 and 88 as wide as 96, SDPA splits images one by one: "
            "the 8B vision tower has heads of 72; the table above says what serves it here",
        )
    )
    levels = ("PROBLEM", "warning", "note")
    return sorted((f for f in found if f is not None), key=lambda finding: levels.index(finding.level))

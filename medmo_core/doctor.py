"""`medmo doctor`: what runs on this machine, op by op, and why; what is known to go wrong here; what is missing.

`--verify` holds every op to its definition on this machine. `--json FILE` writes all of it for programs.
"""

import argparse
import importlib
import importlib.metadata
import json
import pkgutil
import platform
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import medmo_kernels
from medmo_kernels import runtime, verify
from medmo_kernels.runtime import Choice
from medmo_kernels.spec import OpSpec

try:
    from .modules import backend
except ImportError:
    backend = None
WIDTH = 120
OPTIONAL = {
    "triton": ("cuda", "fused kernels"),
    "liger-kernel": ("cuda", "fused norms and losses"),
    "xformers": ("cuda", "an attention back end"),
    "torchao": ("quant", "float8, int4, 8-bit optimisers"),
    "pydicom": ("medical", "DICOM images"),
    "nibabel": ("medical", "NIfTI volumes"),
    "tifffile": ("medical", "16-bit TIFF images"),
    "matplotlib": ("demo", "plots in the report"),
    "jinja2": ("demo", "the report's page"),
    "rich": ("demo", "the live progress line"),
    "tensorboard": ("demo", "TensorBoard logs"),
    "huggingface-hub": ("hub", "checkpoints by hub id"),
}
"""Distribution -> the extra that brings it, and what it is for."""
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


# --- facts -----------------------------------------------------------------------------------------------------------


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Return what the computer is: system, Python, torch, CUDA devices and their drivers."""
    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            devices.append(
                {
                    "device": f"cuda:{index}",
                    "name": facts.name,
                    "capability": 10 * facts.major + facts.minor,
                    "memory_gib": round(facts.total_memory / 2**30, 1),
                }
            )
    driver = NVIDIA_DRIVER.read_text(encoding="utf-8") if NVIDIA_DRIVER.exists() else ""
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", driver)
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu_threads": torch.get_num_threads(),
        "cuda_devices": devices,
        "nvidia_driver": found.group() if found else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "switch": f"{runtime.SWITCH}={runtime.mode()}",
        "native_library": runtime.native_status(),
    }


def devices_to_ask() -> list[torch.device]:
    """Return one CUDA device of each capability, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return [torch.device("cpu")]
    first: dict[int, torch.device] = {}
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        first.setdefault(runtime.capability(device), device)
    return list(first.values())


def rooms() -> Iterator[tuple[str, Sequence[OpSpec]]]:
    """Yield every room's name and what it says of its ops."""
    for room in pkgutil.iter_modules(medmo_kernels.__path__):
        if room.ispkg:
            yield room.name, importlib.import_module(f"medmo_kernels.{room.name}.cases").SPECS


def choices(device: torch.device) -> dict[str, dict[str, Choice]]:
    """Return, op by op, which back end serves which class of shapes; an op that cannot say is a fault, told as such."""
    found: dict[str, dict[str, Choice]] = {}
    for room, specs in rooms():
        spoken_for = any(spec.choices is not None for spec in specs)
        for spec in specs:
            if spec.choices is not None:
                found[spec.name] = dict(spec.choices(device))
            elif spoken_for:
                found[spec.name] = {"all shapes": Choice(f"as {room}", "an op of the same room")}
            else:
                found[spec.name] = {"all shapes": Choice("unknown", "PROBLEM: this op does not say what serves it")}
    return found | {"norms and losses": {"all shapes": norms_and_losses(device)}}


def norms_and_losses(device: torch.device) -> Choice:
    """Say what serves the norms and the loss, which are no ops of our own."""
    if backend is None:
        return Choice("torch", "TEMP")
    refusal = backend.liger_refusal(device)
    if refusal:
        return Choice("torch", "PyTorch's own", (("liger", refusal),))
    return Choice("liger", f"liger-kernel {version_of('liger-kernel')}")


# --- known cliffs ----------------------------------------------------------------------------------------------------


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
        f"transformers' patch embedding is a Conv3d: about 10 times slower than a matrix product even where it is "
        f"healthy, and on torch 2.9 10 to 50,000 times: {cure}",
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
                "TRITON_INTERPRET is set: it matters only with MEDMO_KERNELS=triton, which tests kernels without a GPU",
            )
        )
    if mode != "auto":
        found.append(
            Finding("warning", f"{runtime.SWITCH}={mode} overrules every choice: it is for bisecting, unset it to work")
        )
    if mode == "triton" and not has_cuda and not interpreter:
        found.append(Finding("PROBLEM", f"{runtime.SWITCH}=triton without a GPU needs TRITON_INTERPRET=1"))
    return found


def triton_finding(version: str | None, has_cuda: bool) -> Finding | None:
    """Judge the Triton that is installed."""
    oldest = ".".join(map(str, runtime.OLDEST_TRITON))
    level = "PROBLEM" if has_cuda else "note"
    if version is None:
        return Finding(level, 'Triton is absent: on a GPU every op would run its reference: pip install "medmo[cuda]"')
    if tuple(int(part) for part in version.split(".")[:2]) < runtime.OLDEST_TRITON:
        return Finding(level, f"Triton {version} is older than {oldest}: on a GPU every op would run its reference")
    return None


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
                "some of its own ops slow down or refuse",
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
        *numerics_findings(
            bool(torch.backends.cuda.matmul.allow_tf32 and has_cuda), torch.are_deterministic_algorithms_enabled()
        ),
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


# --- verification ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """An op held to its float64 definition in one dtype, over all its test sizes.

    Attributes:
        op: its name.
        device: where it ran.
        dtype: of its inputs.
        cases: sizes tried.
        worst: where the error came nearest to its bound.
        error: the error there.
        plain_error: that of the reference in the same dtype.
        bound: what the error may be.
        passed: whether all outputs and gradients of all sizes are within their bounds.
        fault: what went wrong, empty if nothing.
    """

    op: str
    device: str
    dtype: str
    cases: int
    worst: str
    error: float
    plain_error: float
    bound: float
    passed: bool
    fault: str


def verify_op(spec: OpSpec, dtype: torch.dtype, device: torch.device) -> Verdict:
    """Compare one op with its reference at all its test sizes."""
    worst, where, faults = verify.Comparison("nothing", 0.0, 0.0, 0.0, ""), "", []
    for size, value in spec.sizes.items():
        try:
            with verify.poisoned(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of every op that has no deterministic form
                compared = verify.compare(spec, verify.arguments_of(spec, value, dtype, device))
        except Exception as error:
            faults.append(f"{size}: {type(error).__name__}: {error}")
            continue
        faults += [f"{size}: {comparison}" for comparison in compared if not comparison.ok]
        for comparison in compared:
            if _share(comparison) >= _share(worst):
                worst, where = comparison, f"{comparison.what} ({size})"
    return Verdict(
        op=spec.name,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        cases=len(spec.sizes),
        worst=where,
        error=worst.error,
        plain_error=worst.plain_error,
        bound=worst.bound,
        passed=not faults,
        fault="; ".join(faults),
    )


def _share(comparison: verify.Comparison) -> float:
    """Return how much of its bound an error uses up; NaN uses more than all."""
    if comparison.error != comparison.error:
        return float("inf")
    return comparison.error / comparison.bound if comparison.bound else float(comparison.error > 0)


# --- the whole -------------------------------------------------------------------------------------------------------


def diagnose(verify_ops: bool = False) -> dict[str, Any]:
    """Return the whole diagnosis in plain values, as `--json` writes it.

    Args:
        verify_ops: also hold every op to its definition, in every dtype it promises.
    """
    devices = devices_to_ask()
    return {
        "machine": machine(),
        "versions": {name: version_of(name) for name in ("medmo", "torch", "transformers", *OPTIONAL)},
        "ops": {
            str(device): {
                op: {label: asdict(choice) for label, choice in classes.items()}
                for op, classes in choices(device).items()
            }
            for device in devices
        },
        "findings": [asdict(finding) for finding in findings()],
        "verdicts": [
            asdict(verify_op(spec, dtype, device))
            for device in (devices if verify_ops else [])
            for _, specs in rooms()
            for spec in specs
            for dtype in spec.tolerance
        ],
    }


def describe(diagnosis: Mapping[str, Any]) -> str:
    """Turn a diagnosis into text, at most 120 columns wide."""
    lines = [*_machine_lines(diagnosis["machine"], diagnosis["versions"])]
    for device, ops in diagnosis["ops"].items():
        lines += ["", f"what serves each op on {device}"]
        lines += _row(("op", 20), ("for", 32), ("back end", 16), ("why", 0))
        for op, classes in ops.items():
            for shown, labels, choice in _alike(op, classes):
                lines += _row((shown, 20), (labels, 32), (choice["backend"], 16), (choice["reason"], 0))
                for refused, reason in choice["refused"]:
                    lines += _row(("", 20), ("", 32), (f"not {refused}", 16), (reason, 0))
    lines += ["", "known to go wrong"]
    for finding in diagnosis["findings"]:
        lines += _row((finding["level"], 9), (finding["text"], 0))
    if diagnosis["verdicts"]:
        lines += _verdict_lines(diagnosis["verdicts"])
    lines += ["", "optional packages"]
    for distribution, (extra, purpose) in OPTIONAL.items():
        state = diagnosis["versions"][distribution] or f'absent: pip install "medmo[{extra}]"'
        lines += _row((distribution, 18), (purpose, 32), (state, 0))
    return "\n".join([*lines, "", "research use only"])


def _machine_lines(facts: Mapping[str, Any], versions: Mapping[str, str | None]) -> Iterator[str]:
    yield "this machine"
    yield f"  {facts['system']}, Python {facts['python']}, {facts['cpu_threads']} CPU threads"
    for device in facts["cuda_devices"]:
        yield f"  {device['device']}  {device['name']}, sm_{device['capability']}, {device['memory_gib']:.0f} GiB"
    if facts["cuda_devices"]:
        driver, cudnn = facts["nvidia_driver"] or "unknown", facts["cudnn"] or "absent"
        yield f"  CUDA {facts['cuda']}, driver {driver}, cuDNN {cudnn}"
    else:
        yield "  no CUDA device: everything runs on the CPU"
    shown = ("torch", "triton", "liger-kernel", "xformers", "torchao", "transformers")
    yield "  " + ", ".join(f"{name} {versions[name] or '(absent)'}" for name in shown)
    yield from _row((f"{facts['switch']}; native library: {facts['native_library']}", 0))


def _alike(op: str, classes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return an op's rows: its name on the first, and classes of shapes that are served alike in one."""
    groups: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for label, choice in classes.items():
        groups.setdefault(json.dumps(choice), ([], choice))[0].append(label)
    if len(groups) == 1 and len(classes) > 1:
        return [(op, "everything", next(iter(classes.values())))]
    return [(op if n == 0 else "", "; ".join(labels), choice) for n, (labels, choice) in enumerate(groups.values())]


def _verdict_lines(verdicts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield ""
    yield "each op against its float64 definition (error and bound where they come closest)"
    widths = (20, 8, 10, 7, 10, 10, 10)
    titles = ("op", "device", "dtype", "cases", "error", "eager's", "bound")
    yield from _row(*zip(titles, widths, strict=True), ("verdict", 0))
    for verdict in verdicts:
        numbers = (f"{verdict[key]:.1e}" for key in ("error", "plain_error", "bound"))
        cells = (verdict["op"], verdict["device"], verdict["dtype"], str(verdict["cases"]), *numbers)
        said = f"ok: {verdict['worst']}" if verdict["passed"] else f"FAILED {verdict['fault']}"
        yield from _row(*zip(cells, widths, strict=True), (said, 0))


def _row(*cells: tuple[str, int]) -> list[str]:
    """Lay out one row: every cell in its own width, wrapped there; the last takes what is left of the line."""
    widths = [width for _, width in cells[:-1]] + [WIDTH - 2 - sum(width for _, width in cells)]
    wrapped = [textwrap.wrap(text, width - 1) or [""] for (text, _), width in zip(cells, widths, strict=True)]
    rows = max(len(parts) for parts in wrapped)
    padded = [parts + [""] * (rows - len(parts)) for parts in wrapped]
    return [
        ("  " + "".join(part.ljust(width) for part, width in zip(line, widths, strict=True))).rstrip()
        for line in zip(*padded, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the diagnosis; return 1 if an op failed its verification."""
    parser = argparse.ArgumentParser(prog="medmo doctor", description=__doc__)
    parser.add_argument("--verify", action="store_true", help="hold every op to its definition on this machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the diagnosis to this file")
    options = parser.parse_args(argv)
    diagnosis = diagnose(options.verify)
    print(describe(diagnosis))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(diagnosis, indent=2) + "\n", encoding="utf-8")
    return 0 if all(verdict["passed"] for verdict in diagnosis["verdicts"]) else 1

"""Diagnosis of a machine: what runs on it, op by op, and why; what is known to go wrong; what is missing.

`medmo doctor` (`medmo_core/__main__.py`) prints it.
"""

import importlib
import itertools
import json
import pkgutil
import platform
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import medmo_kernels
from medmo_kernels import runtime, verify
from medmo_kernels.back_ends import Choice
from medmo_kernels.spec import OpSpec

from . import cliffs
from .modules import backend
from .notice import SHORT_NOTICE
from .optional import how_to_install, version_of

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
    """Return, op by op, which back end serves which class of shapes; an op that cannot say is reported as a fault."""
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
    return found | {"norms and losses": {"norms, SwiGLU, losses": norms_and_losses(device)}}


def norms_and_losses(device: torch.device) -> Choice:
    """Say what serves the norms, SwiGLU and the losses, which are no ops of our own."""
    refusal = backend.liger_refusal(device)
    if refusal:
        return Choice("torch", "PyTorch's own code", (("liger", refusal),))
    return Choice("liger", f"liger-kernel {version_of(backend.DISTRIBUTION)}")


@dataclass(frozen=True)
class Verdict:
    """An op held to its float64 definition in one dtype, over all its test sizes.

    Attributes:
        op: its name.
        device: where it ran.
        dtype: dtype of the op's inputs.
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


def diagnose() -> dict[str, Any]:
    """Return the diagnosis in plain values, as `--json` writes it, with no op verified yet."""
    return {
        "machine": machine(),
        "versions": {name: version_of(name) for name in ("medmo", "torch", "transformers", *OPTIONAL)},
        "ops": {
            str(device): {
                op: {label: asdict(choice) for label, choice in classes.items()}
                for op, classes in choices(device).items()
            }
            for device in devices_to_ask()
        },
        "findings": [asdict(finding) for finding in cliffs.findings()],
        "verdicts": [],
    }


def verdicts(names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Hold the ops of these rooms (none named: all) to their definitions, in every dtype they promise, one by one.

    bf16 is left out on a device that does not have it.
    """
    for device in devices_to_ask():
        left_out = () if cliffs.has_bfloat16(device) else (torch.bfloat16,)
        for room, specs in rooms():
            for spec in specs if room in names or not names else ():
                for dtype in (dtype for dtype in spec.tolerance if dtype not in left_out):
                    yield asdict(verify_op(spec, dtype, device))


def report(diagnosis: Mapping[str, Any], verified: Iterable[Mapping[str, Any]] | None = None) -> Iterator[str]:
    """Yield a diagnosis line by line, at most 120 columns wide; `verified` may still be at work."""
    yield from _machine_lines(diagnosis["machine"], diagnosis["versions"])
    for device, ops in diagnosis["ops"].items():
        yield from ("", f"what serves each op on {device}")
        yield from _row(("op", 20), ("for", 32), ("back end", 16), ("why", 0))
        for op, classes in ops.items():
            yield from _choice_lines(op, classes)
    yield from ("", "known to go wrong")
    for finding in diagnosis["findings"]:
        yield from _row((finding["level"], 9), (finding["text"], 0))
    yield from ("", "optional packages")
    for distribution, (extra, purpose) in OPTIONAL.items():
        state = diagnosis["versions"][distribution] or f"absent: {how_to_install(extra)}"
        yield from _row((distribution, 18), (purpose, 32), (state, 0))
    if verified is not None:
        yield from _verdict_lines(verified)
    yield from ("", SHORT_NOTICE)


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


def _choice_lines(op: str, classes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Lay out what serves an op; classes of shapes with the same back end stand together."""
    groups: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for label, choice in classes.items():
        groups.setdefault(json.dumps(choice), ([], choice))[0].append(label)
    if len(groups) == 1 and len(classes) > 1:
        groups = {"": (["everything"], next(iter(classes.values())))}
    names = itertools.chain([op], itertools.repeat(""))
    for name, (labels, choice) in zip(names, groups.values(), strict=False):
        left = [line for label in labels for line in textwrap.wrap(label, 31)]
        pairs = [(choice["backend"], choice["reason"]), *((f"not {other}", why) for other, why in choice["refused"])]
        right = [line for backend, why in pairs for line in _columns(WIDTH - 54, (backend, 16), (why, 0))]
        first = itertools.chain([name], itertools.repeat(""))
        for cells in zip(first, *zip(*itertools.zip_longest(left, right, fillvalue=""), strict=True), strict=False):
            yield "  {:<20}{:<32}{}".format(*cells).rstrip()


def _verdict_lines(verified: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield ""
    yield "each op against its float64 definition (error and bound where they come closest)"
    widths = (20, 8, 10, 7, 10, 10, 10)
    titles = ("op", "device", "dtype", "cases", "error", "eager's", "bound")
    yield from _row(*zip(titles, widths, strict=True), ("verdict", 0))
    for verdict in verified:
        numbers = (f"{verdict[key]:.1e}" for key in ("error", "plain_error", "bound"))
        cells = (verdict["op"], verdict["device"], verdict["dtype"], str(verdict["cases"]), *numbers)
        said = f"ok: {verdict['worst']}" if verdict["passed"] else f"FAILED {verdict['fault']}"
        yield from _row(*zip(cells, widths, strict=True), (said, 0))


def _row(*cells: tuple[str, int]) -> list[str]:
    """Lay out one indented row over the whole width."""
    return [f"  {line}" for line in _columns(WIDTH - 2, *cells)]


def _columns(width: int, *cells: tuple[str, int]) -> list[str]:
    """Lay out (text, width) cells, each wrapped in its own width; the last takes what is left."""
    widths = [cell[1] for cell in cells[:-1]]
    widths.append(width - sum(widths))
    wrapped = [textwrap.wrap(text, room - 1) for (text, _), room in zip(cells, widths, strict=True)]
    return [
        "".join(part.ljust(room) for part, room in zip(line, widths, strict=True)).rstrip()
        for line in itertools.zip_longest(*wrapped, fillvalue="")
    ]

"""`medmo doctor`: what runs on this machine, op by op, and why; which optional parts are missing; how to get them."""

import argparse
import importlib
import importlib.metadata
import inspect
import pkgutil
import platform
from collections.abc import Iterator, Sequence

import torch

import medmo_kernels
from medmo_kernels import runtime

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


def rooms() -> Iterator[tuple[str, str]]:
    """Yield each op's name and, in its own words, where it runs."""
    for room in pkgutil.iter_modules(medmo_kernels.__path__):
        if room.ispkg:
            op = importlib.import_module(f"medmo_kernels.{room.name}.op")
            yield room.name, " ".join((inspect.getdoc(op) or "").split())


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> str:
    """Return the whole diagnosis as text."""
    lines = ["machine", f"  {platform.system()} {platform.machine()}, Python {platform.python_version()}"]
    lines.append(f"  torch {torch.__version__}, {torch.get_num_threads()} CPU threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            lines.append(f"  cuda:{index} {properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB")
    else:
        lines.append("  no CUDA device: everything runs on the CPU")
    lines.append(f"\nops   (switch {runtime.SWITCH}={runtime.mode()}; native library: {runtime.native_status()})")
    lines += [f"  {name:<18}{text}" for name, text in rooms()]
    lines.append("\noptional packages")
    for distribution, (extra, purpose) in OPTIONAL.items():
        version = version_of(distribution)
        state = version or f'absent: pip install "medmo[{extra}]"'
        lines.append(f"  {distribution:<18}{purpose:<32}{state}")
    lines.append("\nresearch use only")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the diagnosis."""
    argparse.ArgumentParser(prog="medmo doctor", description=__doc__).parse_args(argv)
    print(describe())
    return 0

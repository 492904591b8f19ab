"""The machine on which figures are taken: device, versions, commit; and the best rates it reaches, measured."""

import datetime
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch

from medmo_core import doctor
from medmo_kernels import runtime

from .schema import Machine
from .timing import time_ways

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch", "triton", "liger-kernel", "xformers", "flash-attn", "transformers", "torchao", "scipy", "numpy",
    "pytest-benchmark",
)  # fmt: skip
CPU_NAMES = Path("/proc/cpuinfo")
COMMIT_OF_COPY, DIRTY = "MEDMO_COMMIT", "-dirty"


def default_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(device: torch.device) -> Machine:
    """Describe this machine, the software and the commit."""
    cuda = device.type == "cuda"
    facts = torch.cuda.get_device_properties(device) if cuda else None
    commit, changed = _commit()
    return Machine(
        device=facts.name if facts else _cpu_name(),
        kind="cuda" if cuda else "cpu",
        capability=runtime.capability(device) if cuda else 0,
        driver=(doctor.machine()["nvidia_driver"] or "unknown") if cuda else "",
        cuda=(torch.version.cuda or "") if cuda else "",
        memory_bytes=facts.total_memory if facts else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        versions={name: doctor.version_of(name) or "" for name in PACKAGES} | {"python": platform.python_version()},
        commit=commit,
        changed=changed,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def folder_name(machine: Machine) -> str:
    """Return the name of the device's folder under results/."""
    return re.sub(r"[^a-z0-9]+", "-", f"{machine.kind} {machine.device}".lower()).strip("-")


def ceilings(device: torch.device) -> dict[str, float]:
    """Measure the best rates here: bytes copied (read plus written) and operations of matrix products, per second."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates = {"copy": lambda: target.copy_(source)}
    edge = 8192 if device.type == "cuda" else 1024
    dtypes = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    for dtype in dtypes:
        a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
        rates[str(dtype).removeprefix("torch.")] = lambda a=a, b=b: a @ b
    times = time_ways(rates, device, repeats=20, budget_s=3)
    best = {name: min(timing.samples_us) * 1e-6 for name, timing in times.items()}
    products = {f"matmul_{name}_flops_per_s": 2 * edge**3 / best[name] for name in best if name != "copy"}
    return {"copy_bytes_per_s": 2 * size / best["copy"], **products}


def _cpu_name() -> str:
    """Return the processor's name."""
    if CPU_NAMES.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", CPU_NAMES.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def _commit() -> tuple[str, bool]:
    """Return the short commit, and whether files differ from it.

    Outside a checkout the environment variable MEDMO_COMMIT says it, as `git describe --always --dirty` does where
    the files were copied from; else it is "unknown".
    """

    def git(*words: str) -> str:
        if shutil.which("git") is None:
            return ""
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=9", "HEAD")
    if not commit:
        described = os.environ.get(COMMIT_OF_COPY, "") or "unknown"
        return described.removesuffix(DIRTY), described.endswith(DIRTY)
    others = (":!benchmarks/results", ":!benchmarks/RESULTS.md")  # written by runs themselves
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *others)
    return commit, bool(changed)

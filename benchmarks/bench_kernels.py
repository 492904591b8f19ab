"""Time every op against its reference and its peers on this machine, in one process, and write JSON and Markdown.

    python -m benchmarks.bench_kernels --out results      # on a GPU real shapes in bf16, on a CPU small ones in fp32
    python -m benchmarks.bench_kernels --out results --rooms giou --budget-s 60

Every room's `cases.py` supplies the shapes. A way is timed only after its values were compared with the float64
reference in the same run; one that is wrong is reported as wrong and has no time. Peers that are not installed are
listed with the reason. Results are written after every op, so that stopping early loses nothing.
"""

import argparse
import datetime
import importlib
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import medmo_kernels
from medmo_core.doctor import version_of
from medmo_kernels import verify
from medmo_kernels.spec import Arguments, OpSpec

from .peers import PEERS, Peer
from .timing import Timing, ceilings, time_ways

PACKAGES = ("torch", "triton", "liger-kernel", "xformers", "transformers", "torchao", "scipy", "numpy")
PEER_FACTOR = 16.0
"""A peer may round more often than we do: its error may be so many times the bound that ours must keep to."""


def specs(rooms: Sequence[str]) -> Iterator[OpSpec]:
    """Yield the specs of the named rooms; none named: of all."""
    for path in sorted(Path(medmo_kernels.__path__[0]).glob("*/cases.py")):
        if not rooms or path.parent.name in rooms:
            yield from importlib.import_module(f"medmo_kernels.{path.parent.name}.cases").SPECS


def shapes(spec: OpSpec, device: torch.device) -> dict[str, tuple[Any, torch.dtype]]:
    """Return the sizes worth timing here, with their dtype."""
    if device.type == "cuda":
        dtype = torch.bfloat16 if torch.bfloat16 in spec.tolerance else torch.float32
        return {name: (size, dtype) for name, size in spec.benchmark_sizes.items()}
    dtype = next(dtype for dtype in (torch.float32, torch.float64) if dtype in spec.tolerance)
    return {name: (size, dtype) for name, size in (spec.kernel_sizes or spec.sizes).items()}


def ways_of(spec: OpSpec, device: torch.device) -> tuple[dict[str, Peer], dict[str, str]]:
    """Return the ways to time, ours first, and why others are absent."""
    found = {"ours": Peer(spec.function)}
    absent: dict[str, str] = {}
    if not spec.slow_reference:
        found["reference"] = Peer(spec.reference)
        if device.type == "cuda":
            found["compiled reference"] = Peer(torch.compile(spec.reference, dynamic=False))
    for name, peer in PEERS.get(spec.name, {}).items():
        refusal = peer.refusal(device)
        if refusal:
            absent[name] = refusal
        else:
            found[name] = peer
    return found, absent


def tensors(result: Any) -> list[Tensor]:
    """Return the tensors of an op's result."""
    if isinstance(result, Tensor):
        return [result]
    return [part for part in result if isinstance(part, Tensor)]


def forward_of(way: Peer, arguments: Arguments) -> Callable[[], object]:
    """Return a call that runs forward, what the way needs prepared beforehand."""
    prepared = way.prepare(arguments)

    def call() -> object:
        with torch.no_grad():
            return way.function(**prepared)

    return call


def backward_of(spec: OpSpec, way: Peer, arguments: Arguments) -> Callable[[], object]:
    """Return a call that runs forward and backward."""
    leaves = dict(arguments)
    for name in spec.differentiable:
        if isinstance(leaves.get(name), Tensor):
            leaves[name] = leaves[name].detach().requires_grad_()
    learned = [leaves[name] for name in spec.differentiable if isinstance(leaves.get(name), Tensor)]
    prepared = way.prepare(leaves)

    def call() -> object:
        outputs = [out for out in tensors(way.function(**prepared)) if out.requires_grad]
        return torch.autograd.grad(outputs, learned, [torch.ones_like(out) for out in outputs], allow_unused=True)

    return call


def compared_with_truth(
    spec: OpSpec, arguments: Arguments, function: Callable[..., Any], dtype: torch.dtype, device: torch.device
) -> list[verify.Comparison]:
    """Compare a way with the float64 reference here, or at the test sizes where that would take minutes."""
    if not spec.slow_reference:
        return verify.compare(spec, arguments, function)
    cases = [verify.arguments_of(spec, size, dtype, device) for size in spec.sizes.values()]
    return [comparison for case in cases for comparison in verify.compare(spec, case, function)]


def bench_size(
    spec: OpSpec, size: str, what: Any, dtype: torch.dtype, device: torch.device, budget_s: float
) -> list[dict[str, Any]]:
    """Compare and time every way of one op at one size."""
    arguments = verify.arguments_of(spec, what, dtype, device)
    found, absent = ways_of(spec, device)
    base = {"op": spec.name, "size": size, "dtype": str(dtype).removeprefix("torch.")}
    rows = [{**base, "provider": name, "direction": "", "absent": reason} for name, reason in absent.items()]
    forward: dict[str, Callable[[], object]] = {}
    both: dict[str, Callable[[], object]] = {}
    for name, way in found.items():

        def function(way: Peer = way, **given: Any) -> Any:
            return way.function(**way.prepare(given))

        try:
            compared = compared_with_truth(spec, arguments, function, dtype, device)
            factor = 1.0 if name == "ours" else PEER_FACTOR
            wrong = [str(c) for c in compared if not c.error <= factor * c.bound]
        except Exception as error:  # a peer that cannot run a shape is reported, ours too
            wrong = [f"{type(error).__name__}: {error}".splitlines()[0]]
        if wrong:
            rows.append({**base, "provider": name, "direction": "", "wrong": "; ".join(wrong)})
            continue
        forward[name] = forward_of(way, arguments)
        if spec.differentiable:
            both[name] = backward_of(spec, way, arguments)
    counted = {"bytes": spec.num_bytes(arguments), "flops": spec.num_flops(arguments)}
    for direction, ways in (("forward", forward), ("forward and backward", both)):
        for call in ways.values():
            call()
        for name, timing in time_ways(ways, device, budget_s=budget_s).items():
            rows.append({**base, "provider": name, "direction": direction, **counted, **_numbers(timing)})
    return rows


def _numbers(timing: Timing) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in vars(timing).items()}


def header(device: torch.device) -> dict[str, Any]:
    """Say where and with what the figures were taken."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": name,
        "cuda": device.type == "cuda",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip() or "unknown",
        "versions": {package: version_of(package) for package in PACKAGES} | {"python": platform.python_version()},
        "cuda_version": torch.version.cuda,
        "ceilings": ceilings(device),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the results as a page: per op and size, microseconds and the ratio of ours to each other way."""
    top = result["ceilings"]
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in result["versions"].items())
    lines = [
        f"# Kernels on {result['device']}",
        "",
        f"{result['date']}, commit {result['commit']}. {versions}.",
        f"Ceilings in this run: copy {top['copy_bytes_per_s'] / 1e12:.3f} TB/s, products "
        f"{top['matmul_flops_per_s'] / 1e12:.2f} TFLOP/s. Ratio: the other's median over ours, above 1 we are faster.",
        "",
        "| op | size | direction | provider | median us | 20 % | 80 % | ratio | GB/s | TFLOP/s | peak MB |",
        "|---" * 11 + "|",
    ]
    ours = {(r["op"], r["size"], r["direction"]): r["median_us"] for r in result["timings"]
            if r["provider"] == "ours" and "median_us" in r}  # fmt: skip
    for row in result["timings"]:
        place = f"| `{row['op']}` | {row['size']} | {row['direction']} | {row['provider']} | "
        if "median_us" not in row:
            verdict = f"absent: {row['absent']}" if "absent" in row else f"WRONG: {row['wrong']}"
            lines.append(f"{place}{verdict} |" + " |" * 6)
            continue
        seconds = row["median_us"] * 1e-6
        own = ours.get((row["op"], row["size"], row["direction"]))
        ratio = f"{row['median_us'] / own:.2f}" if own and row["provider"] != "ours" else ""
        rates = f"{row['bytes'] / seconds / 1e9:.1f} | {row['flops'] / seconds / 1e12:.3f}"
        if row["direction"] != "forward":
            rates = " | "  # bytes and operations are counted for the forward pass
        lines.append(f"{place}{row['median_us']:.1f} | {row['p20_us']:.1f} | {row['p80_us']:.1f} | {ratio} | {rates} | "
                     f"{row['peak_bytes'] / 1e6:.1f} |")  # fmt: skip
    return "\n".join([*lines, "", "research use only", ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns 1 where our own result was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for kernels.json and kernels.md")
    parser.add_argument("--rooms", nargs="*", default=[])
    parser.add_argument("--budget-s", type=float, default=300.0, help="no new size is begun after so many seconds")
    parser.add_argument("--seconds-per-size", type=float, default=1.5)
    arguments = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.perf_counter()
    result = {**header(device), "timings": [], "left_out": []}
    arguments.out.mkdir(parents=True, exist_ok=True)
    tasks = [(spec, name, *what) for spec in specs(arguments.rooms) for name, what in shapes(spec, device).items()]
    for number, (spec, name, what, dtype) in enumerate(tasks, 1):
        spent = time.perf_counter() - began
        if spent > arguments.budget_s:
            result["left_out"].append(f"{spec.name}, {name}: no time left")
            continue
        print(f"[{number}/{len(tasks)}, {spent:.0f} s] {spec.name}, {name}", flush=True)
        result["timings"] += bench_size(spec, name, what, dtype, device, arguments.seconds_per_size)
        (arguments.out / "kernels.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (arguments.out / "kernels.md").write_text(markdown(result), encoding="utf-8")
    wrong = [row for row in result["timings"] if row["provider"] == "ours" and "wrong" in row]
    for row in wrong:
        print(f"WRONG: {row['op']}, {row['size']}: {row['wrong']}")
    print(f"{len(result['timings'])} rows in {arguments.out}/kernels.md; {len(wrong)} wrong; "
          f"{len(result['left_out'])} sizes left out")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Write the tables of kernels/README.md: the least time each op can take, and what the compiler made of each kernel.

    python -m benchmarks.report.kernel_pages build/compiled.json --write   # records of tools.compile_kernels
    python -m benchmarks.report.kernel_pages build/compiled.json           # exit status 1 where the page differs

Both name the loops with matrix products that cost more than the page says. Under another version of Triton than the
page's only what does not depend on it is compared.
"""

import argparse
import importlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import medmo_kernels
from medmo_kernels.spec import OpSpec, ShapesAlone

from .kernel_loops import ABOUT, HEADING, grown, loops
from .page_section import section_of, settle

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "kernels/README.md"
RESULTS = ROOT / "benchmarks/results"
TOOL = "benchmarks.report.kernel_pages"
COMPILED = "### As compiled"
VERSION = re.compile(r"compiled ahead of time by triton ([\w.+]+)")
BYTES_PER_S, FLOPS_PER_S = 4.3e12, 790e12
"""An H200 as measured: copy bandwidth (bytes read plus bytes written) and dense bf16 matrix products."""


def specs() -> Iterator[tuple[str, OpSpec]]:
    """Yield room and spec of every op that has kernels."""
    for path in sorted(Path(medmo_kernels.__path__[0]).glob("*/triton_kernel.py")):
        room = path.parent.name
        for spec in importlib.import_module(f"medmo_kernels.{room}.cases").SPECS:
            if spec.compile.sizes:
                yield room, spec


def floors() -> list[str]:
    """Return the table of bytes, operations and the H200 floor, with the chip's own figure where there is one."""
    rows = ["| op | size | MB | GFLOP | H200 floor, us | bound by | measured on the chip, us |", "|---" * 7 + "|"]
    measured = chip_figures()
    for _, spec in specs():
        for name, size in spec.bench.sizes.items():
            dtype = torch.bfloat16 if torch.bfloat16 in spec.tolerance else torch.float32
            with ShapesAlone():
                arguments = spec.make(size, torch.Generator(), dtype)
            moved, work = spec.bench.num_bytes(arguments), spec.bench.num_flops(arguments)
            by_bytes, by_work = 1e6 * moved / BYTES_PER_S, 1e6 * work / FLOPS_PER_S
            bound = "bytes" if by_bytes >= by_work else "products"
            figure = measured.get((spec.name, name), "not measured yet")
            rows.append(f"| `{spec.name}` | {name} | {moved / 1e6:.2f} | {work / 1e9:.2f} | "
                        f"{max(by_bytes, by_work):.2f} | {bound} | {figure} |")  # fmt: skip
    return rows


def chip_figures() -> dict[tuple[str, str], str]:
    """Return the newest measured forward time of each (op, size) among the committed results, with its device."""
    found: dict[tuple[str, str], str] = {}
    results = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("cuda-*/*.json")]
    for result in sorted(results, key=lambda r: r["machine"]["date"]):
        place = f"({result['machine']['device']}, {result['machine']['date'][:10]})"
        for row in result["rows"]:
            if (row["level"], row["way"], row["direction"], row["status"]) == ("kernels", "ours", "forward", "timed"):
                found[row["subject"], row["case"]] = f"{row['median_us']:.1f} {place}"
    return found


def compiled(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of registers, stack and shared memory, one row per kernel and configuration."""
    capabilities = sorted({record["capability"] for record in records})
    head = " | ".join(f"sm_{capability}: registers / stack B / shared KB" for capability in capabilities)
    rows = [f"| op | kernel | configuration | {head} | HGMMA (sm_90) |", "|---" * (4 + len(capabilities)) + "|"]
    groups: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    order: dict[tuple[str, str, int], list[str]] = {}
    for record in records:
        # The same launch of the same size stands in one row, whatever blocks each device's table chose for it.
        counted = order.setdefault((record["op"], record["size"], record["capability"]), [])
        label = f"{record['kernel']}#{sum(name == record['kernel'] for name in counted)}"
        counted.append(record["kernel"])
        groups.setdefault((record["op"], record["size"], label), {})[record["capability"]] = record
    for (op, size, label), by_capability in groups.items():
        cells = [_cell(by_capability.get(capability)) for capability in capabilities]
        hopper = by_capability.get(90)
        rows.append(f"| `{op}` | `{label.split('#')[0]}` | {size} | {' | '.join(cells)} | "
                    f"{hopper['hgmma'] if hopper else ''} |")  # fmt: skip
    return rows


def _cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    return f"{record['registers']} / {record['stack']} / {record['shared'] / 1024:.1f}"


def section(result: dict[str, Any]) -> str:
    """Return everything between the two markers of the page."""
    records = result["records"]
    spills = sum(record["spills"] > 0 for record in records)
    parts = [
        "### Least time on an H200",
        f"Counted bytes over {BYTES_PER_S / 1e12:g} TB/s and operations over {FLOPS_PER_S / 1e12:g} TFLOP/s (both as "
        "measured on such a card), forward, bf16. No kernel can be faster.",
        "\n".join(floors()),
        COMPILED,
        f"{len(records)} launches compiled ahead of time by triton {result['triton']}, {spills} of them with spill "
        "instructions. Rows without a figure share the kernel of another row.",
        "\n".join(compiled(records)),
        HEADING,
        ABOUT,
        "\n".join(loops(records)),
    ]
    return "\n\n".join(parts)


def comparable(text: str, page: str) -> str:
    """Return a section for comparison with that of the page: what another Triton compiled is taken from the page."""
    versions = [VERSION.search(section) for section in (text, page)]
    of_text, of_page = (found[1] if found else "" for found in versions)
    if of_text == of_page or not of_page:
        return text
    print(f"{PAGE.name} was written under triton {of_page}, this is {of_text}: what it compiled is not compared")
    return text.partition(COMPILED)[0] + COMPILED + page.partition(COMPILED)[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page's tables, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args(argv)
    text, page = section(json.loads(arguments.records.read_text(encoding="utf-8"))), section_of(PAGE, TOOL)
    if not arguments.write:
        text = comparable(text, page)
    for growth in grown(page, text):
        print(f"costs more than {PAGE.name} says: {growth}", file=sys.stderr)
    return settle(PAGE, TOOL, text, write=arguments.write, fix="make kernels")


if __name__ == "__main__":
    sys.exit(main())

"""Facts about the kernels that need no GPU: the least time each op can take, and what the compiler made of it."""

from . import kernel_pages
from .markdown import table
from .page_section import section_of


def sections() -> list[str]:
    """Return the headings and tables."""
    rates = f"{kernel_pages.BYTES_PER_S / 1e12:g} TB/s and {kernel_pages.FLOPS_PER_S / 1e12:g} TFLOP/s"
    return [
        f"Computed, not measured. Forward, bf16, at real shapes: counted bytes and operations, and the time they take "
        f"at {rates}, both as measured on an H200.",
        "\n".join(kernel_pages.floors()),
        "Of each op's kernels as compiled for the GPUs named: the most registers and shared memory, all stack "
        "together, and Hopper's matrix instructions (HGMMA). Kernel by kernel: "
        "[kernels/README.md](../kernels/README.md#as-compiled).",
        compiled(section_of(kernel_pages.PAGE, kernel_pages.TOOL)),
    ]


def compiled(section: str) -> str:
    """Sum up the page's table of compiled kernels, op by op.

    Args:
        section: text written by `benchmarks/report/kernel_pages.py`, which a test holds to what the compiler makes.
    """
    lines = section.split(kernel_pages.COMPILED)[1].split("\n### ")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    chips = [(place, name.split(":")[0]) for place, name in enumerate(head) if name.startswith("sm_")]
    by_op: dict[str, list[list[str]]] = {}
    for row in rows:
        by_op.setdefault(row[0], []).append(row)
    written = []
    for op, kernels in by_op.items():
        cells = [op, str(len(kernels))]
        for place, _ in chips:
            figures = [[float(part) for part in row[place].split("/")] for row in kernels if row[place]]
            registers, stack, shared = zip(*figures, strict=True)
            cells.append(f"{max(registers):.0f} / {sum(stack):.0f} / {max(shared):.1f}")
        written.append([*cells, str(sum(int(row[-1] or 0) for row in kernels))])
    names = [f"{name}: registers / stack B / shared KB" for _, name in chips]
    return table(["op", "launches", *names, head[-1]], written)

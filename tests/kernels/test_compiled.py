"""Every shipped kernel compiles for three generations of GPUs, without spills, and the page says what came out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
PINNED = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("triton=="))


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: here Triton was imported for the interpreter, and its compiler is out of reach.
    command = [sys.executable, str(ROOT / "tools" / name), *arguments]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "compiled.json"
    done = tool("compile_kernels.py", "--json", str(path))
    assert path.exists(), done.stdout + done.stderr
    return path


def test_every_kernel_keeps_to_its_gate(records: Path) -> None:
    result = json.loads(records.read_text())
    broken = [(r["op"], r["size"], r["kernel"], r["capability"], r["faults"]) for r in result["records"] if r["faults"]]
    assert broken == []
    assert {r["capability"] for r in result["records"]} == {80, 90, 100}


def test_every_row_of_every_table_is_compiled(records: Path) -> None:
    """A configuration that no compile size launches would ship unseen."""
    result = json.loads(records.read_text())
    assert result["unused_rows"] == []


def test_the_page_shows_what_was_compiled(records: Path) -> None:
    result = json.loads(records.read_text())
    if f"triton=={result['triton']}" != PINNED:
        pytest.skip(f"the page shows {PINNED}, this is triton {result['triton']}")
    done = tool("kernel_tables.py", str(records))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_kernel_that_breaks_its_gate_is_told(tmp_path: Path) -> None:
    """The gate itself must bite: with no register to spare a kernel spills, and the tool says so."""
    code = (
        "import sys; sys.path.insert(0, 'tools'); import compile_kernels as c\n"
        "spec = next(s for s in c.specs() if s.name == 'giou')\n"
        "c.read_cubin = lambda cubin, count_hgmma: (255, 8, 2, 0)\n"
        "records = c.inspect(spec, next(iter(spec.compile_sizes)), 90)\n"
        "assert all('8 bytes of stack' in r.faults[0] for r in records), records\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False,
                          env=os.environ | {"TRITON_INTERPRET": "0"})  # fmt: skip
    assert done.returncode == 0, done.stderr

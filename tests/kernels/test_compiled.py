"""Every shipped kernel compiles for Hopper without spills, with all rows of its table.

`make kernels-check`, a step of CI, does the same for all classes of shapes and three generations of GPUs and compares
the page with it; that takes five times as long.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Another process: here Triton was imported for the interpreter, and its compiler is out of reach.
    command = [sys.executable, "-m", name, *arguments]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "compiled.json"
    done = tool("tools.compile_kernels", "--capabilities", "90", "--models", "--json", str(path))
    assert path.exists(), done.stdout + done.stderr
    return path


def test_every_kernel_keeps_to_its_gate(records: Path) -> None:
    result = json.loads(records.read_text())
    broken = [(r["op"], r["size"], r["kernel"], r["capability"], r["faults"]) for r in result["records"] if r["faults"]]
    assert broken == []
    assert {r["capability"] for r in result["records"]} == {90}


def test_every_row_of_every_table_is_compiled(records: Path) -> None:
    """A configuration that no compile size launches would ship unseen."""
    result = json.loads(records.read_text())
    assert result["unused_rows"] == []


def test_a_tile_of_patches_is_bound_by_its_products(records: Path) -> None:
    """At most 6,500 cycles to issue beside 6,144 of the matrix units; no product is waited for inside the loop."""
    found = json.loads(records.read_text())["records"]
    tiles = {r["size"]: r for r in found if r["kernel"] == "forward_kernel" and r["size"] in ("4B", "8B")}
    assert set(tiles) == {"4B", "8B"}
    for tile in tiles.values():
        (loop,) = tile["budget"]["loops"]
        assert tile["passes"] * loop["matrix"] == 6144 and loop["drains"] == 0
        assert tile["passes"] * loop["issue"] + tile["budget"]["outside"] <= 6500


def run(code: str) -> None:
    """Run a program in another process, for the same reason."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def test_boxes_move_whole_and_prices_are_gathered() -> None:
    """One load and one store of 16 bytes a box, no exchange between threads; five shuffles a search for one minimum."""
    run("""
import collections
from tools.compile_kernels import cubin, launches, pretended, sass

def counted(op, size, kernel, kinds):
    spec = next(spec for spec in pretended.specs() if spec.name == op)
    found = next(launch for launch in launches.launches(spec, size, 90) if launch.kernel == kernel)
    code = sass.parse(cubin.disassemble(found.compiled.asm["cubin"]))
    return collections.Counter(sass.name(x) for x in code.instructions if sass.kind(x) in kinds)

assert counted("giou", "4096 pairs, fp32", "aligned_backward_kernel", ("LDG", "STG", "LDS", "STS", "BAR")) == {
    "LDG.E.128": 2, "LDG.E": 1, "STG.E.128": 2}
shuffles = counted("box_match", "iou", "box_match_kernel", ("SHFL",))
assert sum(shuffles.values()) <= 36, shuffles
""")


def test_products_of_attention_queue_behind_one_another(records: Path) -> None:
    """One wait for the matrix units a pass and product that something reads, however many columns a head has."""
    result = json.loads(records.read_text())
    of_size = {(r["size"], r["kernel"]): r["budget"] for r in result["records"] if r["op"] == "attention"}
    drains = {key: {loop["drains"] for loop in budget["loops"]} for key, budget in of_size.items() if budget}
    expected = {
        ("vision 8B", "_forward"): {1},
        ("vision 8B", "_backward_query"): {2},
        ("vision 8B", "_backward_key"): {2},
        ("vision 4B", "_forward"): {1},
        ("vision 4B", "_backward_query"): {1},
        ("vision 4B", "_backward_key"): {1},
        ("text", "_backward_query"): {1},
    }
    assert {key: drains[key] for key in expected} == expected
    first = [budget["loops"][0] for (size, _), budget in of_size.items() if size == "vision 8B" and budget]
    assert len(first) == 3 and all(loop["issue"] < loop["matrix"] for loop in first), first


def test_a_kernel_that_breaks_its_gate_is_reported() -> None:
    """The gate itself must bite: a kernel that spills, or that copies pixels a few bytes at a time, is reported."""
    run('''
import dataclasses
from medmo_kernels.spec import Gate
from tools.compile_kernels import cubin, pretended, records

sass = """
/*0010*/ @!P0 LDGSTS.E.BYPASS.128 [R3], desc[UR8][R4.64] ;
/*0020*/      LDGSTS.E [R3+0x10], desc[UR8][R4.64+0x10] ;
/*0030*/      LDG.E.128 R8, desc[UR8][R6.64] ;
/*0040*/      LDG.E.U8 R12, desc[UR8][R6.64] ;
/*0050*/      I2FP.F32.U32 R5, R12 ;
/*0060*/      I2F R5, R12 ;
/*0070*/      LDL.64 R2, [R1] ;
/*0080*/      HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
"""
counted = cubin.count_instructions(sass)
assert counted == (1, 1, 2, ("I2F", "I2FP.F32.U32", "LDG.E.U8", "LDGSTS.E")), counted

spec = next(s for s in pretended.specs() if s.name == "giou")
gate = lambda kernel, constants: Gate(wide_copies=True)
spec = dataclasses.replace(spec, compile=dataclasses.replace(spec.compile, gate=gate))
records.read_cubin = lambda code, listed: cubin.Cubin(255, 8, 2, 0, 4, ("LDGSTS.E",) if listed else ())
for record in records.inspect(spec, next(iter(spec.compile.sizes)), 90):
    stack, narrow, copies = record.faults
    assert "8 bytes of stack" in stack and "LDGSTS.E" in narrow and "4 copies" in copies, record.faults
''')

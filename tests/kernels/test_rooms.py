"""Every room has the same files, and the arrows between files make no circle."""

import ast
import re
from pathlib import Path

import pytest

import medmo_kernels

ROOT = Path(medmo_kernels.__file__).parent
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/op.py"))
FURNITURE = {"__init__.py", "reference.py", "triton_kernel.py", "launch.py", "op.py", "cases.py", "table.json"}
GUESTS = re.compile(r"triton_kernel_\w+\.py|plain\.py|checks\.py|sdpa(_plan)?\.py|peers\.py|rotary\.py|__pycache__")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_its_furniture_and_only_known_guests(room: str) -> None:
    found = {path.name for path in (ROOT / room).iterdir()}
    assert found >= FURNITURE
    assert [name for name in found - FURNITURE if not GUESTS.fullmatch(name)] == []


def arrows() -> dict[str, set[str]]:
    """Every file of the package and the files that it imports, lazily too."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*name.split(".")[: -node.level], *(node.module or "").split(".")]
                prefix = ".".join(part for part in base if part)
                imported |= {prefix, *(f"{prefix}.{alias.name}".lstrip(".") for alias in node.names)}
        found[name] = imported & paths.keys()
    return found


def circles(graph: dict[str, set[str]]) -> set[str]:
    """Peel off whatever imports nothing that is left; what stays lies on a circle or above one."""
    left = dict(graph)
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:
            del left[name]
    return set(left)


def test_no_circle() -> None:
    graph = arrows()
    assert graph["attention.op"] >= {"back_ends", "runtime", "attention.peers", "attention.launch"}
    assert circles(graph) == set()
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}, "a planted circle"

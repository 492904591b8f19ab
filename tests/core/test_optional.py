"""Optional libraries: imported where there, named with the extra where not."""

import ast
import json
import logging
import sys
from pathlib import Path

import pytest

from medmo_core.optional import NOISY, how_to_install, import_optional, missing

ROOT = Path(__file__).resolve().parents[2]


def test_a_library_that_is_there_is_returned() -> None:
    assert import_optional("json", "demo", "the report") is json
    assert import_optional("json.decoder", "demo", "the report") is json.decoder


def test_a_missing_library_is_named_with_its_user_and_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    message = r'^scan.dcm: reading DICOM needs no-such-library: pip install "medmo\[medical\]"$'
    with pytest.raises(ImportError, match=message):
        import_optional("no_such_library.part", "medical", "scan.dcm: reading DICOM")
    monkeypatch.setitem(sys.modules, "json", None)
    with pytest.raises(ImportError, match=r"^the report needs json: "):
        import_optional("json", "demo", "the report")
    assert missing("a_b.c", "cuda", "x") == 'x needs a-b: pip install "medmo[cuda]"'


def test_loggers_have_their_levels_again(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger(NOISY[0])
    monkeypatch.setattr(logger, "level", logging.INFO)
    with pytest.raises(ImportError):
        import_optional("no_such_library", "quant", "x")
    assert logger.level == logging.INFO


def spellings(path: Path) -> int:
    """Return how often code spells the command that installs an extra; docstrings may, and do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, bodies) and node.body and isinstance(node.body[0], ast.Expr)
    }
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings]
    return sum(isinstance(node.value, str) and "medmo[" in node.value for node in strings)


def test_one_place_spells_the_command(tmp_path: Path) -> None:
    """The kernels, which import nothing of ours, have one more."""
    parts = ("kernels", "medmo_core", "recipes", "benchmarks", "tools")
    files = {part: list((ROOT / part).rglob("*.py")) for part in parts}
    assert all(files.values()), f"a folder without Python files: {files}"
    counts = {path.relative_to(ROOT).as_posix(): spellings(path) for part in parts for path in files[part]}
    found = {name: count for name, count in counts.items() if count}
    assert found == {"medmo_core/optional.py": 1, "kernels/medmo_kernels/runtime.py": 1}
    planted = tmp_path / "planted.py"
    planted.write_text(f"raise ImportError({how_to_install('demo')!r})\n")
    assert spellings(planted) == 1

"""Import paths that the last version's pages named still work, and say where the name has gone."""

import subprocess
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest

from medmo_core.moved import forward
from tools.house.imports import imports_of, module_files
from tools.house.sources import SHIPPED, SourceFile

ROOT = Path(__file__).resolve().parents[2]

MOVED = [
    ("medmo_core.data.resize", "patchify", "medmo_core.data.images.patches"),
    ("medmo_core.data.jsonl", "load_jsonl", "medmo_core.data.sources.jsonl"),
    ("medmo_core.data.image", "load_image", "medmo_core.data.images.load"),
    ("medmo_core.image_boxes", "by_image", "medmo_core.boxes.image_boxes"),
    ("medmo_core.datasets.sample", "eval_samples", "medmo_core.datasets.embedded.tasks"),
    ("medmo_recipes.training.reward_set", "reward_columns", "medmo_recipes.reinforcement.reward_calls.reward_set"),
]


@pytest.mark.parametrize(("old", "name", "new"), MOVED)
def test_an_old_path_gives_the_same_object_and_names_the_new_one(old: str, name: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"from {new} import {name}"):
        found = getattr(import_module(old), name)
    assert found is getattr(import_module(new), name)


def test_the_warning_points_at_the_line_that_imports() -> None:
    script = "from medmo_core.data.resize import patchify\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert "<string>:1: DeprecationWarning" in done.stderr


def test_a_name_that_never_was_is_no_attribute() -> None:
    get = forward("old", "medmo_core.data.images.patches")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("never_was", "__path__"):
            with pytest.raises(AttributeError, match=name):
                get(name)


def imports_by_old_paths(files: Mapping[str, SourceFile]) -> list[str]:
    """Return the import statements, at any depth, that name a module which only hands on."""
    old = {module for module, _, _ in MOVED}
    return [
        f"{source.name}:{item.line} {item.target}"
        for module, source in files.items()
        for item in imports_of(module, source)
        if old & {item.module, item.target}
    ]


def test_every_module_that_hands_on_is_listed() -> None:
    files = module_files(ROOT)
    found = {
        module
        for module, source in files.items()
        if any(item.target == "medmo_core.moved.forward" for item in imports_of(module, source))
    }
    assert found == {old for old, _, _ in MOVED}


def test_our_own_files_use_the_new_paths() -> None:
    files = module_files(ROOT, (*SHIPPED, "tests"))
    assert {source.part for source in files.values()} == {*SHIPPED, "tests"}
    assert imports_by_old_paths(files) == []


@pytest.mark.parametrize(
    "line",
    [
        "from medmo_core.data.resize import patchify",
        "from medmo_core.data import resize",
        "import medmo_core.data.resize",
        "from .resize import patchify",
        "def read(): from . import resize",
    ],
)
def test_an_import_by_an_old_path_is_noticed(tmp_path: Path, line: str) -> None:
    planted = tmp_path / "medmo_core/data/planted.py"
    planted.parent.mkdir(parents=True)
    planted.write_text(f"{line}\n")
    (found,) = imports_by_old_paths(module_files(tmp_path))
    assert found.startswith("medmo_core/data/planted.py:1 medmo_core.data.resize")

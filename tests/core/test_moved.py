"""Import paths that the last version's pages named still work, and say where the name has gone."""

import subprocess
import sys
import warnings
from importlib import import_module

import pytest

from medmo_core.moved import forward

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


@pytest.mark.parametrize(("old", "name", "new"), MOVED)
def test_our_own_files_use_the_new_path(old: str, name: str, new: str) -> None:
    script = f"import sys, medmo_recipes.reinforce, medmo_recipes.cli; assert {old!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)

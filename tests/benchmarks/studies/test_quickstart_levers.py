"""The study of levers: what is run, what is not run again, and the table."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import quickstart_levers
from medmo_core.errors import InputError
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.command_line import apply_overrides


def scores(iou: float) -> dict[str, Any]:
    one = {"grounding_iou": {"value": iou}, "grounding_denied": {"value": 0.1}, "grounding_invented": {"value": 0.25}}
    half = {**one, "grounding_iou": {"value": iou / 2}}
    return {"fit": one, "val": half, "val_scans": half}


def test_every_variant_is_a_config_that_differs() -> None:
    shipped = CONFIGS["tiny_instruct"]()
    for name, words in quickstart_levers.VARIANTS.items():
        assert (apply_overrides(shipped, words) == shipped) == (not words), name


def test_finished_variants_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, tuple[str, ...]]] = []

    def train(stage: str, size: str, folder: Path, words: tuple[str, ...]) -> None:
        trained.append((stage, words))
        (folder / "final").mkdir(parents=True)

    monkeypatch.setattr(quickstart_levers, "train", train)
    monkeypatch.setattr(quickstart_levers, "score", lambda checkpoint, size: scores(0.4))
    names = list(quickstart_levers.VARIANTS)
    study = {"size": "debug", "recipe": quickstart_levers.recipe_digest("debug")}
    done = {names[0]: {"settings": [], "seconds": 1.0, **scores(0.5)}, names[1]: {"settings": ["old=1"]}}
    (tmp_path / "levers.json").write_text(json.dumps({**study, "variants": done}))
    results = quickstart_levers.run_variants(tmp_path, "debug")
    assert list(results) == names and results[names[0]]["val"]["grounding_iou"]["value"] == 0.25
    assert [stage for stage, _ in trained] == ["align", *["instruct"] * (len(names) - 1)]
    shorter = (f"model.init={tmp_path / 'align' / 'final'}", "train.steps=2", "train.save_every=2")
    assert all(words[:3] == shorter for _, words in trained[1:])
    assert results[names[1]]["settings"] == list(quickstart_levers.VARIANTS[names[1]])
    trained.clear()
    assert quickstart_levers.run_variants(tmp_path, "debug") == results and trained == []


def test_the_table_has_a_row_per_variant() -> None:
    found = {"as shipped": {"settings": [], "seconds": 301.4, **scores(0.5)}}
    found["slower"] = {"settings": ["optim.lr=1e-3"], "seconds": 300.6, **scores(0.25)}
    lines = quickstart_levers.section(found).splitlines()
    assert lines[0].startswith("| variant | IoU, fit | denied, fit | invented, fit | IoU, val |")
    assert lines[2] == "| as shipped | 0.500 |" + " 0.100 | 0.250 | 0.250 |" * 2 + " 0.100 | 0.250 | 301 | none |"
    assert lines[3].endswith("| 301 | `optim.lr=1e-3` |")


def test_an_unfinished_study_is_not_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no result of as shipped"):
        quickstart_levers.publish(tmp_path)
    assert quickstart_levers.main(["--table", str(tmp_path)]) == 2
    assert "run --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"size": "debug", "recipe": "x", "variants": {}}', '{"size": "debug"}'],
    ids=["broken", "a list", "another recipe", "no variants"],
)  # fmt: skip
def test_results_of_something_else_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "levers.json").write_text(text)
    with pytest.raises(InputError, match="name another folder"):
        quickstart_levers.run_variants(tmp_path, "debug")

"""The checkpoint in the package is what its card says, and the tool that writes it refuses what cannot be used."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medmo_core.demo.checkpoint import CARD, DEMO_NAME, FILES, HELD_OUT, WEIGHTS
from medmo_core.errors import InputError
from medmo_core.inference import load
from medmo_recipes.commands import three_stages
from medmo_recipes.configs import CONFIGS
from medmo_recipes.evaluation.ask import Asking
from medmo_recipes.evaluation.provenance import provenance_of
from medmo_recipes.evaluation.results import Evaluation
from medmo_recipes.pages.quickstart_page import METRIC_NAMES
from medmo_recipes.settings.run_config import STAGES
from medmo_recipes.training.model.kit import load_kit
from tools.demo_checkpoint import __main__ as tool
from tools.demo_checkpoint.card import card_of
from tools.demo_checkpoint.publishing import FINAL, Counts, images_of, publish, refuse_other_runs, refuse_unfit

FEW = Counts(num_samples=6, num_reports=2, num_captions=3)


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    """The held-out figures in the package."""
    return json.loads((FILES / HELD_OUT).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run whose last stage has the weights of the package."""
    for stage in STAGES:
        (tmp_path / "run" / stage).mkdir(parents=True)
        config = json.dumps(CONFIGS[f"demo_{stage}"]().to_dict())
        (tmp_path / "run" / stage / "config.json").write_text(config, encoding="utf-8")
    shutil.copytree(FILES / WEIGHTS, tmp_path / "run" / FINAL)
    return tmp_path / "run"


@pytest.mark.parametrize(("setting", "value"), [("steps", 7), ("seed", 3)])
def test_a_run_that_the_card_would_misdescribe_is_refused(run: Path, setting: str, value: int) -> None:
    refuse_other_runs(run, 0)
    config = CONFIGS["demo_instruct"]().change(train={setting: value}).to_dict()
    (run / "instruct/config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match=rf"instruct: trained with {setting}={value}, expected .*another --out"):
        refuse_other_runs(run, 0)


def test_the_card_says_what_the_figures_say(stored: dict[str, Any]) -> None:
    card = (FILES / CARD).read_text(encoding="utf-8")
    assert card == card_of(stored), "write it anew: python -m tools.demo_checkpoint --card"
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d.]+)[ |]", card, re.MULTILINE))
    for metric in ("vqa_accuracy", "grounding_iou", "grounding_f1", "report_fact_f1", "retrieval_recall1"):
        assert rows[METRIC_NAMES[metric]] == f"{stored['metrics'][metric]['value']:.3f}"
    for words in ("A toy.", "Research use only", stored["command"], stored["dtype"], "silver labels", "## Limits"):
        assert words in card


def test_the_figures_are_of_the_weights_in_the_package(stored: dict[str, Any]) -> None:
    provenance = provenance_of(
        Evaluation(), checkpoint=DEMO_NAME, folder=FILES / WEIGHTS, data="", files=(), split="test", asking=Asking()
    )
    assert provenance["weights_sha256"] == stored["provenance"]["weights_sha256"]
    kit = load(DEMO_NAME, device="cpu")
    assert sum(p.numel() for p in kit.model.parameters()) == stored["num_parameters"]


def test_what_is_stored_may_stand_in_the_package(stored: dict[str, Any]) -> None:
    """Rounding moves no score, the first question gets a box, and the images are counted right."""
    refuse_unfit(stored)
    counts = [(row["num_training_images"], row["num_held_out_images"]) for row in stored["data"]]
    assert sum(trained for trained, _ in counts) == stored["num_training_images"]
    assert sum(held_out for _, held_out in counts) == len(images_of("test"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda v: v.update(num_bytes=10_000_001), "10,000,001 bytes, expected 10,000,000"),
        (lambda v: v["first_answer"].update(boxes=[]), "without a box"),
        (
            lambda v: v["rounding"]["changes"]["grounding_iou"].update(difference=-0.021),
            "grounding_iou changes by -0.0",
        ),
    ],
)
def test_what_readme_could_not_use_is_refused(
    stored: dict[str, Any], damage: Callable[[dict[str, Any]], None], said: str
) -> None:
    values = json.loads(json.dumps(stored))
    damage(values)
    with pytest.raises(InputError, match=said):
        refuse_unfit(values)


def test_a_finished_run_is_published_whole(run: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "old.txt").write_text("of an earlier checkpoint", encoding="utf-8")
    publish(run, files, command="as typed", counts=FEW)
    values = json.loads((files / HELD_OUT).read_text(encoding="utf-8"))
    assert {path.name for path in files.iterdir()} == {CARD, HELD_OUT, WEIGHTS}
    assert (files / CARD).read_text(encoding="utf-8") == card_of(values)
    assert values["stages"]["instruct"]["steps"] == CONFIGS["demo_instruct"]().train.steps
    assert values["rounding"]["same_answers"] == 1, "these weights were rounded before"
    assert values["metrics"]["vqa_accuracy"]["n"] == FEW.num_samples


def test_a_checkpoint_without_a_box_leaves_the_one_before(run: Path, tmp_path: Path) -> None:
    files = Path(shutil.copytree(FILES, tmp_path / "files"))
    kit = load_kit(CONFIGS["debug_instruct"](), "cpu")
    shutil.rmtree(run / FINAL)
    kit.model.save_pretrained(run / FINAL, tokenizer=kit.tokenizer, profile=kit.profile)
    with pytest.raises(InputError, match="without a box"):
        publish(run, files, command="as typed", counts=FEW)
    assert (files / CARD).read_text(encoding="utf-8") == (FILES / CARD).read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_command_trains_only_what_is_not_trained(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(tool, "run", lambda out, *, size, seed: done.append(f"train {out.name} {size} {seed}"))
    monkeypatch.setattr(tool, "publish", lambda out, files, *, command: done.append(command))
    monkeypatch.setattr(tool, "refuse_other_runs", lambda out, seed: None)
    assert tool.main(["--out", str(run)]) == 0
    assert tool.main(["--out", str(tmp_path / "new"), "--seed", "3"]) == 0
    assert [line.split()[0] for line in done] == ["python", "train", "python"]
    assert done[1] == "train new demo 3" and done[2].endswith("new --seed 3")


def test_the_recipe_is_the_quickstarts_with_more_steps() -> None:
    for stage in STAGES:
        tiny, demo = CONFIGS[f"tiny_{stage}"](), CONFIGS[f"demo_{stage}"]()
        steps = {name: getattr(tiny.train, name) for name in ("steps", "save_every", "out_dir")}
        assert demo.train.steps > tiny.train.steps
        assert demo.change(name=tiny.name, train=steps) == tiny
    costs = three_stages.costs_of({stage: CONFIGS[f"demo_{stage}"]() for stage in STAGES})
    assert costs["instruct"] / three_stages.COSTS["instruct"] == pytest.approx(
        CONFIGS["demo_instruct"]().train.steps / CONFIGS["tiny_instruct"]().train.steps
    )
    assert costs["evaluate align"] == three_stages.COSTS["evaluate align"]

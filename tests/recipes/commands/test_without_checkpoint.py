"""Commands that are told no checkpoint ask `medmo-tiny-demo`, and say that it is a toy."""

import json
from pathlib import Path

import pytest

from medmo_core.datasets.embedded.facts import EMBEDDED_ROOT
from medmo_core.demo import checkpoint
from medmo_core.demo.checkpoint import DEMO_NAME, FILES, FIRST_IMAGE, HELD_OUT, toy_line
from medmo_recipes import cli
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.loading.files import check_files

SCAN = str(EMBEDDED_ROOT / FIRST_IMAGE)


@pytest.fixture(autouse=True)
def anew() -> None:
    """Let it be said again: it is said once in a process."""
    checkpoint._say.cache_clear()


def test_generate_answers_with_a_box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--image", SCAN, "--prompt", "Where is the liver?", "--out", str(tmp_path / "answer.png")]
    assert cli.main([*words, "--device", "cpu", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["boxes"]
    assert said.err == f"{toy_line()}\n"
    number = json.loads((FILES / HELD_OUT).read_text(encoding="utf-8"))["num_training_images"]
    assert "toy" in said.err and f"{number} images" in said.err and "research use only" in said.err


def test_evaluate_scores_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scores"
    words = ["evaluate", "--data", "embedded:grounding", "--num-samples", "4", "--device", "cpu", "--out", str(out)]
    assert cli.main(words) == 0
    assert toy_line() in capsys.readouterr().err.splitlines()
    values = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert values["provenance"]["checkpoint"] == DEMO_NAME and "grounding_iou" in values["metrics"]
    stored = json.loads((FILES / HELD_OUT).read_text(encoding="utf-8"))
    assert values["provenance"]["weights_sha256"] == stored["provenance"]["weights_sha256"]


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ([], "--image and --prompt missing"),
        (["--image", SCAN], "--prompt missing"),
        (["--prompt", "Where?"], "--image missing"),
    ],
)
def test_generate_says_what_it_needs(words: list[str], missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", *words]) == 2
    said = capsys.readouterr().err
    assert f"medmo generate: {missing}" in said and f"medmo generate --image {SCAN} --prompt" in said


def test_a_run_may_start_from_it() -> None:
    check_files(CONFIGS["debug_instruct"]().change(model={"init": DEMO_NAME}))

"""The scripts under examples/ run."""

import os
import subprocess
import sys
from pathlib import Path

from medmo_core.datasets.embedded.facts import EMBEDDED_ROOT
from medmo_recipes.configs import CONFIGS
from medmo_recipes.reinforcement.reward_calls.find_reward import find_reward
from medmo_recipes.training.model.kit import load_kit

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def run(script: str, *words: str, folder: Path) -> str:
    """Return what an example prints."""
    command = [sys.executable, str(EXAMPLES / script), *words]
    done = subprocess.run(command, text=True, capture_output=True, cwd=folder, timeout=240, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ask_one_scan(tmp_path: Path) -> None:
    kit = load_kit(CONFIGS["debug_instruct"](), "cpu")
    kit.model.save_pretrained(tmp_path / "model", tokenizer=kit.tokenizer, profile=kit.profile)
    scan = str(EMBEDDED_ROOT / "images/ct-contrast-006.png")
    assert "research use only" in run("ask_one_scan.py", "model", scan, "Where is the liver?", folder=tmp_path)
    assert (tmp_path / "answer.png").read_bytes()[:4] == b"\x89PNG"


def test_own_reward(tmp_path: Path) -> None:
    assert run("own_reward.py", folder=tmp_path).strip() == "[1.0, 0.5, 0.0]"
    reward = find_reward(f"{EXAMPLES / 'own_reward.py'}:short_answer")
    assert reward(completions=["yes", "a report"], task=["vqa", "report"], answer=[None, None]) == [1.0, None]


def test_every_example_is_run() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in tested for path in EXAMPLES.glob("*.py"))

"""A run with a reward of one's own, from the command line: paid, logged and shown; its failure ends the run by name."""

import json
from pathlib import Path

import pytest

from medmo_recipes import reinforce

SMALL = ["--config", "debug_reinforce", "train.steps=1", "train.docs_per_step=2"]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(
        "import time\n\n"
        "def brief(completions, log_metric, log_extra, **columns):\n"
        "    words = [len(chat[0]['content'].split()) for chat in completions]\n"
        "    log_metric('words', max(words))\n"
        "    log_extra('counted', [f'{n} words' for n in words])\n"
        "    return [1 / (1 + n) for n in words]\n\n"
        "def broken(completions, sample_id, **columns):\n"
        "    return [None if i % 4 else float(sample_id[i]) for i in range(len(completions))]\n\n"
        "def hangs(**columns):\n"
        "    time.sleep(60)\n"
    )
    return path


def test_it_is_paid_logged_and_shown(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    weights = [f"rewards.weights.{own}:brief=1", "rewards.weights.format=0"]
    assert reinforce.main([*SMALL, f"train.out_dir={out}", *weights, "watching.page_every=1"]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    values = next(line for line in lines if "event" not in line)
    assert 0 < values["reward/brief"] <= 1 and values["reward/brief/applies_ratio"] == 1.0
    assert values["reward/format/applies_ratio"] == 1.0 and values["logged/words"] >= 1
    names = [line["reward"] for line in lines if line.get("event") == "reward_histogram"]
    assert "brief" in names
    page = (out / "rollouts/step-000001.html").read_text(encoding="utf-8")
    assert "counted: " in page and "Research use only" in page
    assert 'href="step-000001.html"' in (out / "rollouts/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "own.py:broken' failed on sample {}, completion 1: ValueError: could not convert string to float"),
        ("hangs", "took longer than 0.5 s, at own.py:13; rewards.timeout_s=0.5 is the limit of one call"),
    ],
)
def test_its_failure_ends_the_run_in_one_line(
    name: str, message: str, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    weights = [f"rewards.weights.{own}:{name}=1", "rewards.timeout_s=0.5"]
    assert reinforce.main([*SMALL, f"train.out_dir={out}", *weights]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    before, _, behind = message.partition("{}")
    assert last.startswith("error: ") and f"{own}:{name}" in last and before in last and behind in last
    assert not (out / "final").exists()

"""The page about rewards: its code runs, its launch lines are understood, its tables are the program's."""

import contextlib
import io
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medmo_core.rewards import REWARDS
from medmo_recipes.configs import CONFIGS
from medmo_recipes.reinforcement import alarms
from medmo_recipes.reinforcement.reward_calls.find_reward import ARGUMENTS
from medmo_recipes.reinforcement.reward_calls.reward_set import RewardSet
from medmo_recipes.settings.command_line import read_command_line

PAGE = Path(__file__).resolve().parents[3] / "docs/rewards.md"
TEXT = PAGE.read_text(encoding="utf-8")
OWN, USE, TRL = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
LAUNCHES = re.findall(r"^python -m medmo_recipes\.reinforce (.*)$", TEXT, re.MULTILINE)


@pytest.fixture(autouse=True)
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the page's file where its reader would, and stand there."""
    assert OWN.startswith("# my_rewards.py\n")
    (tmp_path / "my_rewards.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)


def test_the_example_prints_what_it_says() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(USE, str(PAGE), "exec"), {"__name__": "page"})
    (printed,) = re.findall(r"^print\(.*\)  # (.*)$", USE, re.MULTILINE)
    assert out.getvalue().splitlines() == [printed]


def test_trl_is_given_what_its_trainer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the libraries: the rows are plain, and every reward scores them."""
    given: dict[str, Any] = {}
    dataset = SimpleNamespace(from_list=lambda rows: rows)
    trl = SimpleNamespace(GRPOConfig=dict, GRPOTrainer=lambda **arguments: given.update(arguments))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Dataset=dataset))
    monkeypatch.setitem(sys.modules, "trl", trl)
    exec(compile(TRL, str(PAGE), "exec"), {"__name__": "page"})
    rows = given["train_dataset"]
    assert len(rows) == 8 and len(given["reward_funcs"]) == len(given["args"]["reward_weights"])
    columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "image")}
    json.dumps(columns)
    assert all(list(row["image"].size) == row["image_size"] for row in rows)
    said = [[{"role": "assistant", "content": "[]"}]] * len(rows)
    for reward in given["reward_funcs"]:
        scores = reward(
            completions=said, prompts=[row["prompt"] for row in rows], completion_ids=[[1]] * len(rows),
            trainer_state=SimpleNamespace(global_step=0, max_steps=1), log_metric=lambda name, value: None,
            log_extra=lambda column, values: None, **columns,
        )  # fmt: skip
        assert len(scores) == len(rows)


@pytest.mark.parametrize("line", LAUNCHES)
def test_launch_lines_are_understood(line: str) -> None:
    config = read_command_line(shlex.split(line), stage="reinforce", configs=CONFIGS, about="").config
    assert RewardSet.from_config(config.rewards).names


def test_the_launch_lines_use_the_file() -> None:
    assert "rewards.weights.my_rewards.py:brief=0.3" in LAUNCHES[0]
    assert len(LAUNCHES) == 3


def test_every_keyword_and_reward_is_on_the_page() -> None:
    tables = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    assert [name for name in ARGUMENTS if not re.search(rf"`{name}[`(]", tables)] == []
    listed = re.findall(r"^\| `(\w+)` \|", TEXT.partition("## Ours")[2].partition("\n## ")[0], re.MULTILINE)
    assert set(listed) == set(REWARDS)


def test_the_alarms_are_those_of_the_program() -> None:
    table = TEXT.partition("<!-- alarms: begin -->")[2].partition("<!-- alarms: end -->")[0]
    rows = dict(re.findall(r"^\| ([\w ]+?) \| (.+?) \|$", table, re.MULTILINE))
    del rows["alarm"]
    assert rows.keys() == alarms.SIGNS.keys()
    about = " ".join((alarms.__doc__ or "").split())
    assert [text for name, text in rows.items() if f"- {name}: {text}" not in about] == []
    assert f"the last {alarms.RECENT} steps" in TEXT and f"the first {alarms.BASELINE};" in TEXT

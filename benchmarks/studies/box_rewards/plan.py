"""The plan of a round: arms, seeds, steps, settings and questions, fixed in a committed file before its runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medmo_core.datasets.names import EMBEDDED_PREFIX, FORMER_PREFIX
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.command_line import apply_overrides
from medmo_recipes.settings.run_config import RunConfig

STUDIES = Path(__file__).resolve().parents[1]
PLANS = STUDIES / "box_reward_rounds"
FIGURES = STUDIES.parent / "results/cpu/compare_box_rewards"
START = "instruct"
"""Name, among the arms, of the checkpoint that they start from."""


@dataclass(frozen=True)
class StudyPlan:
    """The runs of a round; the fields of its file.

    Attributes:
        about: what is special about it.
        config: name of the reinforce recipe.
        settings: `section.field=value`, on top of it.
        arms: name -> reward weights; the first is the one that must win.
        seeds: each arm is trained once with each.
        steps: steps of every run.
        questions: what is asked, by the names of `asking.ASKERS`, and how many of each kind.
        start: command that trains the checkpoint which every arm starts from; empty: the quickstart's instruct stage.
    """

    about: str
    config: str
    settings: Sequence[str]
    arms: Mapping[str, Mapping[str, float]]
    seeds: Sequence[int]
    steps: int
    questions: Mapping[str, int]
    start: str = ""

    def run_config(self, arm: str, seed: int, init: Path, out: Path) -> RunConfig:
        """Return the run of one arm with one seed."""
        return apply_overrides(CONFIGS[self.config](), self.settings).change(
            model={"init": str(init)},
            rewards={"weights": self.arms[arm]},
            train={
                "steps": self.steps,
                "save_every": self.steps,
                "seed": seed,
                "out_dir": str(out),
                "device": "cpu",
                "num_threads": 1,
            },
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as the file of the plan holds them."""
        return {name: value for name, value in asdict(self).items() if value != ""}


def read_plan(path: Path) -> StudyPlan:
    """Read the file of a round."""
    return StudyPlan(**json.loads(path.read_text(encoding="utf-8")))


def stored_rounds(folder: Path) -> dict[str, Any]:
    """Read the figures of every round: name -> figures."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def settings_of(plan: Mapping[str, Any]) -> list[str]:
    """Return the settings of a stored plan, data sets by the names that they have now."""
    former, current = (f"data.sources.{prefix}" for prefix in (FORMER_PREFIX, EMBEDDED_PREFIX))
    return [setting.replace(former, current) for setting in plan["settings"]]


def asks_for_one_box(plan: Mapping[str, Any]) -> bool:
    """Return whether the questions of a stored plan are those of the first rounds, with one box each."""
    return "grounding" in plan["questions"]

"""The boxes of a completion are read once in a step, however many rewards, figures and pages look at them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from medmo_core import profile as profile_module
from medmo_core.profile import CheckpointProfile
from medmo_core.rewards import REWARDS
from medmo_recipes import reinforce
from medmo_recipes.configs import CONFIGS
from medmo_recipes.reinforcement.groups import Group

BOX_REWARDS = ("box", "presence", "label", "medmo_box", "format")
READ = [("parse_boxes", False), ("parse_image_boxes", False), ("parse_many", True)]
"""Functions that a profile reads texts with, and whether each takes many."""


def texts_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by each text as often as it is read."""
    read: list[str] = []
    for name, many in READ:
        real = getattr(profile_module, name)

        def counted(text: Any, *arguments: Any, real: Any = real, many: bool = many, **named: Any) -> Any:
            read.extend(text if many else [text])
            return real(text, *arguments, **named)

        monkeypatch.setattr(profile_module, name, counted)
    return read


def readings(own_data: Path, monkeypatch: pytest.MonkeyPatch, rewards: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take a step and return the texts that were read and the completions of grounding prompts."""
    config = CONFIGS["debug_reinforce"]().change(
        data={"sources": {str(own_data): 1.0}, "crops": False},
        train={"steps": 1, "docs_per_step": 8, "device": "cpu", "out_dir": str(own_data.parent / "run")},
        rollout={"num_generations": 3, "max_new_tokens": 5},
        rewards={"weights": dict.fromkeys(rewards, 1.0)},
        watching={"page_every": 1},
    )
    groups: list[Group] = []
    sample_groups = reinforce.sample_groups

    def keep(*arguments: Any) -> list[Group]:
        groups.extend(sample_groups(*arguments))
        return groups

    monkeypatch.setattr(reinforce, "sample_groups", keep)
    read = texts_read(monkeypatch)
    assert reinforce.run(config)
    asked = [text for group in groups if group.prompt.sample.task == "grounding" for text in group.texts]
    assert asked and (own_data.parent / "run/rollouts/step-000001.html").is_file()
    return sorted(read), sorted(asked)


def test_a_completion_is_read_once(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, asked = readings(own_data, monkeypatch, BOX_REWARDS)
    assert read == asked


def test_a_second_reading_is_noticed(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a reward that reads the texts itself."""

    def own(
        completions: list[str], task: list[str], boxes: list[Any], profile: list[CheckpointProfile], **_: Any
    ) -> list[float | None]:
        rows = zip(completions, task, boxes, profile, strict=True)
        return [float(p.parse_boxes(text, b).ok) if kind == "grounding" else None for text, kind, b, p in rows]

    monkeypatch.setitem(REWARDS, "own", own)
    read, asked = readings(own_data, monkeypatch, ["box", "own"])
    assert read == sorted(asked * 2)


@pytest.mark.parametrize("name", BOX_REWARDS)
def test_what_was_read_before_scores_the_same(name: str) -> None:
    """A reward gives the worked examples the same scores with boxes that were read for it."""
    from importlib import import_module

    from medmo_core.rewards.box_answers import answer_places, parse_answers

    for example in import_module(f"medmo_core.rewards.{name}").EXAMPLES:
        columns = {key: [value] for key, value in example.columns.items()}
        places = answer_places(columns.get("boxes", [None]), columns.get("image_size", [None]))
        parsed = parse_answers([example.completion], columns["task"], places, columns["profile"])
        scores = [REWARDS[name]([example.completion], **columns, parsed_boxes=known) for known in (None, parsed)]
        assert scores[0] == scores[1], example.about

"""Alarms: trouble is logged once, a healthy run logs none, and a resumed run logs the same."""

import json
import math
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from medmo_recipes.reinforcement.alarms import BASELINE, RECENT, SIGNS, Alarms
from medmo_recipes.settings.command_line import setting_types
from medmo_recipes.settings.run_config import Watching
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.monitoring.log import RunLog

HEALTHY = {
    "completion_tokens": 30.0,
    "boxes": 1.1,
    "true_boxes": 1.0,
    "entropy": 0.8,
    "zero_variance_ratio": 0.2,
    "unreadable_ratio": 0.05,
}
STEPS = 80


def logged(change: Callable[[int], Mapping[str, float]], alarms: Alarms | None = None, steps: int = STEPS) -> list[str]:
    """Return "name@step" of every alarm of a run whose figures differ from healthy ones as `change` says."""
    alarms = alarms or Alarms(Watching())
    found = []
    for step in range(1, steps + 1):
        for message in alarms.look(step, HEALTHY | change(step)):
            name = message.removeprefix("alarm (").partition(")")[0]
            assert f"after step {step}: " in message and message.endswith(".")
            found.append(f"{name}@{step}")
    return found


def names(found: list[str]) -> list[str]:
    return [entry.partition("@")[0] for entry in found]


def after(step: int, start: float, end: float, at: int = 30) -> float:
    """Rise or fall from `start` to `end` over 20 steps."""
    return start + (end - start) * min(1.0, max(0.0, (step - at) / 20))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("length", lambda step: {"completion_tokens": after(step, 30, 75)}),
        ("length", lambda step: {"completion_tokens": after(step, 30, 10)}),
        ("boxes", lambda step: {"boxes": after(step, 1.1, 3.0)}),
        ("boxes", lambda step: {"boxes": after(step, 1.1, 0.2)}),
        ("entropy", lambda step: {"entropy": after(step, 0.8, 0.05)}),
        ("flat groups", lambda step: {"zero_variance_ratio": after(step, 0.2, 0.7)}),
        ("flat groups", lambda step: {"zero_variance_ratio": 1.0}),  # from the first step on
        ("unreadable", lambda step: {"unreadable_ratio": after(step, 0.05, 0.4)}),
    ],
)
def test_trouble_is_logged_once(name: str, change: Callable[[int], Mapping[str, float]]) -> None:
    assert names(logged(change)) == [name]


def noisy(step: int) -> dict[str, float]:
    random_step = random.Random(step)
    return {name: value * random_step.uniform(0.6, 1.4) for name, value in HEALTHY.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda step: {},
        noisy,
        # A model that learns: surer, a little shorter, fewer unreadable answers, box counts nearer the truth.
        lambda step: {
            "entropy": after(step, 0.8, 0.25),
            "completion_tokens": after(step, 30, 20),
            "unreadable_ratio": after(step, 0.05, 0.0),
            "boxes": after(step, 1.4, 1.0),
            "zero_variance_ratio": after(step, 0.2, 0.5),
        },
        # One that cannot write boxes yet: nothing gets worse.
        lambda step: {"unreadable_ratio": 1.0, "boxes": 0.0, "zero_variance_ratio": 0.75},
        # One that learns to write them.
        lambda step: {"unreadable_ratio": after(step, 1.0, 0.0), "boxes": after(step, 0.0, 1.2)},
        # A single odd step.
        lambda step: {"completion_tokens": 250.0, "entropy": 0.01} if step == 50 else {},
        lambda step: {"entropy": 0.0},
        lambda step: dict.fromkeys(HEALTHY, math.nan),
        lambda step: {"true_boxes": 0.0, "boxes": 9.0},  # nothing is true: there is no ratio
    ],
    ids=range(9),
)
def test_what_is_well_is_not_logged(change: Callable[[int], Mapping[str, float]]) -> None:
    assert logged(change) == []


def test_thirty_steps_come_before_any_judgement() -> None:
    found = logged(lambda step: {"completion_tokens": 30.0 if step <= BASELINE else 300.0})
    assert found == [f"length@{BASELINE + RECENT}"]


def test_a_second_episode_is_logged_again_but_not_a_flicker() -> None:
    def change(step: int) -> dict[str, float]:
        return {"completion_tokens": 90.0 if 30 < step <= 50 or 90 < step <= 110 else 30.0}

    assert names(logged(change, steps=130)) == ["length", "length"]
    flicker = logged(lambda step: {"completion_tokens": 62.0 if step % 3 else 59.0} if step > 30 else {}, steps=130)
    assert names(flicker) == ["length"]


def test_figures_that_are_missing_leave_the_other_alarms_be() -> None:
    def change(step: int) -> dict[str, float]:
        values = {"completion_tokens": after(step, 30, 90)}
        return values | ({"boxes": math.nan} if step % 2 else {})

    assert names(logged(change)) == ["length"]
    alarms = Alarms(Watching())
    assert alarms.look(1, {"loss": 0.3}) == []


def test_off_is_off() -> None:
    assert logged(lambda step: {"completion_tokens": after(step, 30, 300)}, Alarms(Watching(alarms=False))) == []


def test_a_resumed_run_tells_the_same() -> None:
    def change(step: int) -> dict[str, float]:
        return noisy(step) | {"completion_tokens": after(step, 30, 90), "boxes": after(step, 1.1, 4.0, at=45)}

    expected = logged(change)
    assert len(expected) == 2
    for cut in (5, 33, 47, 60):
        first = Alarms(Watching())
        found = logged(change, first, steps=cut)
        state = json.loads(json.dumps(first.state()))
        logged(lambda step: {"completion_tokens": 1.0}, first, steps=3)  # what goes on there is not in the state
        second = Alarms(Watching())
        second.restore(state)
        assert second.state() == state
        for step in range(cut + 1, STEPS + 1):
            messages = second.look(step, HEALTHY | change(step))
            found += [f"{m.removeprefix('alarm (').partition(')')[0]}@{step}" for m in messages]
        assert found == expected, cut


def test_every_sign_says_what_to_do_with_settings_that_exist() -> None:
    settings = set(setting_types())
    for sign in SIGNS.values():
        named = re.findall(r"\b(?:grpo|rollout|optim|model|rewards)\.[a-z_]+\b", sign.advice)
        assert set(named) <= settings
        assert sign.message.format(recent=0.5, first=0.25)


def test_an_alarm_is_printed_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world: Any = World(rank=0, size=1, device=torch.device("cpu"))
    alarms = Alarms(Watching())
    with RunLog(tmp_path, world, steps=STEPS, title="toy") as log:
        for step in range(1, STEPS + 1):
            alarms.log(log, step, HEALTHY | {"entropy": after(step, 0.8, 0.01)})
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (event,) = [e for e in events if e.get("event") == "alarm"]
    assert event["message"].startswith("alarm (entropy) after step ") and event["step"] > 30
    assert capsys.readouterr().err.count(event["message"]) == 1

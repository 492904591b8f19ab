"""Rewards are found by name, called in TRL's shape, timed, checked, and named with their sample when they fail."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medmo_core.data.records.sample import Answer, BoxAnnotation, Fact, ImageRef, Sample
from medmo_core.errors import USER_ERRORS
from medmo_core.generation.decoding import Generation
from medmo_core.profile import QWEN3_VL
from medmo_core.rewards import REWARDS, box_reward
from medmo_recipes.reinforcement.reward_calls import reward_call
from medmo_recipes.reinforcement.reward_calls.find_reward import ARGUMENTS, find_reward
from medmo_recipes.reinforcement.reward_calls.reward_set import RewardError, RewardSet, reward_columns
from medmo_recipes.reinforcement.reward_calls.time_limit import HUNG, TimeUp, time_limit
from medmo_recipes.settings.run_config import ConfigError, Rewards

IMAGE = ImageRef("ct.png", width=200, height=100)
LIVER = BoxAnnotation("liver", (20.0, 10.0, 60.0, 50.0))
SAMPLES = (
    Sample("where", "grounding", (IMAGE,), boxes=(LIVER,), answer=Answer("boxes")),
    Sample("which", "vqa", (IMAGE, IMAGE), answer=Answer("yesno", "yes")),
    Sample("what", "report", facts=(Fact("liver"),), answer=Answer("report", "The liver is visible.")),
)
TEXTS = ('[{"bbox_2d": [100, 100, 300, 500], "label": "liver"}]', "Yes.", "The liver is visible.")
DONE = Generation([5, 6], [-0.1, -0.2, -0.3], finished=True, stop_token=9)
CUT = Generation([7], [-0.5])


def score(
    rewards: RewardSet, *, samples: Any = SAMPLES, texts: Any = TEXTS, step: int = 3
) -> dict[str, list[float | None]]:
    generations = [DONE, CUT, DONE, CUT, CUT, CUT, CUT, CUT][: len(samples)]
    prompts = [f"prompt of {sample.id}" for sample in samples]
    return rewards.score(samples, texts, generations, prompts=prompts, profile=QWEN3_VL, step=step, max_steps=10)


def one(function: Callable[..., Any], *, timeout_s: float = 60.0) -> RewardSet:
    return RewardSet({"mine.py:own": function}, timeout_s=timeout_s)


def failing(function: Callable[..., Any], **changes: Any) -> str:
    with pytest.raises(RewardError) as caught:
        score(one(function), **changes)
    return str(caught.value)


def test_our_rewards_score_what_applies() -> None:
    rewards = RewardSet.from_config(Rewards(weights={"answer": 1.0, "box": 2.0, "factuality": 0.5, "format": 0.1}))
    assert rewards.names == ("answer", "box", "factuality", "format")
    found = score(rewards)
    assert found["answer"] == [None, 1.0, None]
    assert found["box"] == [pytest.approx(1.0), None, None]
    assert found["factuality"][:2] == [None, None] and found["factuality"][2] == pytest.approx(1.0)
    assert found["format"] == [1.0, 0.0, 1.0]  # the second was cut off
    assert rewards.seconds.keys() == set(rewards.names) and all(s > 0 for s in rewards.seconds.values())


def test_a_function_sees_what_trl_gives_and_more() -> None:
    seen: dict[str, Any] = {}

    def own(**everything: Any) -> list[float]:
        seen.update(everything)
        return [0.0] * 3

    score(one(own))
    assert seen.keys() == set(ARGUMENTS)
    assert seen["completions"] == [[{"role": "assistant", "content": text}] for text in TEXTS]
    assert seen["prompts"][0] == [{"role": "user", "content": "prompt of where"}]
    assert seen["completion_ids"] == [[5, 6, 9], [7], [5, 6, 9]]  # with the stop token, where one was sampled
    assert (seen["trainer_state"].global_step, seen["trainer_state"].max_steps) == (3, 10)
    assert seen["task"] == ["grounding", "vqa", "report"] and seen["finished"] == [True, False, True]
    assert seen["solution"] == [None, "yes", "The liver is visible."] and seen["num_images"] == [1, 2, 0]
    assert seen["image_size"] == [(200, 100), (200, 100), None] and seen["sample_id"] == ["where", "which", "what"]
    assert seen["boxes"][0] == SAMPLES[0].truth_boxes() and seen["boxes"][2] is None
    assert seen["facts"][2] == SAMPLES[2].facts and seen["answer"][1] == SAMPLES[1].answer
    assert all(type(seen[key]) is list for key in reward_columns(SAMPLES[0], QWEN3_VL))


def test_a_function_that_names_parsed_boxes_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that cannot do without them; they are what the profile reads in each completion."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "def count(*, parsed_boxes, **columns):\n    return [b and len(b.boxes) for b in parsed_boxes]"
    )
    seen: dict[str, Any] = {}

    def own(parsed_boxes: list[Any], **columns: Any) -> list[float | None]:
        seen["given"] = parsed_boxes
        return [None] * len(parsed_boxes)

    found = score(RewardSet({"own.py:count": find_reward("own.py:count"), "mine.py:own": own}))
    assert found["own.py:count"] == [1.0, None, None]
    truth = SAMPLES[0].truth_boxes()
    assert truth is not None and seen["given"] == [QWEN3_VL.parse_boxes(TEXTS[0], truth), None, None]


def test_a_function_may_spoil_its_lists() -> None:
    def own(completions: list[Any], task: list[str], **columns: Any) -> list[float]:
        count = len(completions)
        completions.clear(), task.clear()
        return [1.0] * count

    found = score(RewardSet({"a.py:own": own, "b.py:own": own, "answer": REWARDS["answer"]}))
    assert found["b.py:own"] == [1.0, 1.0, 1.0] and found["answer"] == [None, 1.0, None]


@pytest.mark.parametrize(
    "values",
    [
        [1, None, True],
        (1.0, None, 1),
        [np.float32(1), None, np.bool_(True)],
        [torch.tensor(1.0), None, torch.tensor([1])],
    ],
)
def test_numbers_of_any_kind_are_taken(values: Any) -> None:
    assert score(one(lambda **_: values))["mine.py:own"] == [1.0, None, 1.0]


def test_tensors_and_arrays_are_taken() -> None:
    assert score(one(lambda **_: torch.tensor([0.5, 1.0, 0.0])))["mine.py:own"] == [0.5, 1.0, 0.0]
    assert score(one(lambda **_: np.array([0.5, 1.0, 0.0])))["mine.py:own"] == [0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "on 3 completions of samples where, which, what returned None (NoneType): expected a list"),
        ({"a": 1}, "returned {'a': 1} (dict): expected a list"),
        (0.5, "returned 0.5 (float): expected a list"),
        ([1.0, 2.0], "returned 2 values: expected one for each of 3 completions"),
        ([1.0, "high", 1.0], "on sample which, completion 1 returned 'high' (str): expected a finite number, or None"),
        ([1.0, 1.0, float("nan")], "on sample what, completion 1 returned nan (float): expected a finite number"),
        ([float("inf"), 1.0, 1.0], "on sample where, completion 1 returned inf (float)"),
        ([[1.0], 1.0, 1.0], "on sample where, completion 1 returned [1.0] (list)"),
        ([1.0, 1e308, 1.0], "on sample which, completion 1 returned 1e+308 (float): expected a number from -1e+06 to"),
        ([-1.1e6, 1.0, 1.0], "on sample where, completion 1 returned -1100000.0 (float): expected a number from"),
        ([10**400, 1.0, 1.0], "(int): expected a finite number"),
        ([10**9999, 1.0, 1.0], "returned what cannot be written (int): expected a finite number"),
        ([Fraction(10**400), 1.0, 1.0], "(Fraction): expected a finite number"),
        ([1j, 1.0, 1.0], "returned 1j (complex): expected a finite number"),
        ([Decimal(1), 1.0, 1.0], "returned Decimal('1') (Decimal): expected a finite number"),
        ([np.datetime64("2020-01-01"), 1.0, 1.0], "(date): expected a finite number"),
        ("abc", "returned 'abc' (str): expected a list"),
        ((value for value in (1.0, 1.0, 1.0)), "(generator): expected a list"),
        (torch.zeros(3, device="meta"), "(Tensor): expected a list"),
        (torch.tensor(1.0), "returned 1.0 (float): expected a list"),
        ([torch.tensor([1.0, 2.0]), 1.0, 1.0], "on sample where, completion 1 returned tensor([1., 2.]) (Tensor)"),
    ],
)
def test_a_wrong_result_names_reward_and_sample(values: Any, message: str) -> None:
    told = failing(lambda **_: values)
    assert told.startswith("reward 'mine.py:own' on ") and message in told


def test_an_exception_names_reward_sample_completion_and_line() -> None:
    def own(completions: list[Any], **columns: Any) -> list[float]:
        return [1.0 / (chat[0]["content"] != "No.") for chat in completions]

    samples = [SAMPLES[1]] * 3
    told = failing(own, samples=samples, texts=["Yes.", "No.", "No."])
    assert "reward 'mine.py:own' failed on sample which, completion 2: ZeroDivisionError" in told
    assert re.search(r"\(test_reward_set\.py:\d+\)$", told)
    assert issubclass(RewardError, USER_ERRORS)  # told in one line by the launcher


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def _cancelled() -> asyncio.CancelledError:
    return asyncio.CancelledError()


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("end", "named"),
    [
        (lambda: SystemExit(0), r"SystemExit: 0 \(test_reward_set"),
        (lambda: GeneratorExit(), r"GeneratorExit:  \(test_reward_set"),
        (_cancelled, r"CancelledError:  \(test_reward_set"),
        (Mute, r"Mute: its message cannot be written \(test_reward_set"),
        (lambda: StopIteration(3), r"StopIteration"),
    ],
)
def test_a_reward_that_would_end_the_run_is_an_error_that_names_it(
    end: Callable[[], BaseException], named: str, is_async: bool
) -> None:
    def own(completions: list[Any], **columns: Any) -> list[float]:
        if "Yes." in str(completions):
            raise end()
        return [1.0] * len(completions)

    async def awaited(**columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return own(**columns)

    told = failing(awaited if is_async else own)
    assert told.startswith("reward 'mine.py:own' failed on sample which, completion 1: ") and re.search(named, told)


def test_a_task_of_a_reward_that_exits_is_an_error_too() -> None:
    async def exits() -> None:
        sys.exit(0)

    async def own(completions: list[Any], **columns: Any) -> list[float]:
        await asyncio.gather(asyncio.create_task(exits()))
        return [1.0] * len(completions)

    assert "'mine.py:own'" in failing(own) and "SystemExit" in failing(own)


@pytest.mark.parametrize("is_async", [False, True])
def test_an_interrupt_of_the_user_stays_one(is_async: bool) -> None:
    def own(**columns: Any) -> list[float]:
        raise KeyboardInterrupt

    async def awaited(**columns: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(one(awaited if is_async else own))


def test_an_exception_that_needs_all_completions_names_all_samples() -> None:
    def own(completions: list[Any], log_extra: Any, **columns: Any) -> list[float]:
        if len(completions) > 1:
            raise KeyError("solution")
        log_extra("when called alone", [])  # nothing is recorded then
        return [1.0]

    told = failing(own)
    assert "failed on 3 completions of samples where, which, what: KeyError: 'solution'" in told


def test_many_samples_are_not_all_listed() -> None:
    samples = [Sample(f"s{i}", "vqa") for i in range(8)]
    assert "8 completions of samples s0, s1, s2, s3, s4 and 3 more" in failing(
        lambda **_: None, samples=samples, texts=[""] * 8
    )


@pytest.mark.parametrize("stubborn", [False, True], ids=["sleeps", "catches every Exception"])
def test_a_reward_that_hangs_is_interrupted_and_named(stubborn: bool) -> None:
    def own(**columns: Any) -> list[float]:
        while True:
            try:
                time.sleep(20)
            except Exception:
                if not stubborn:
                    raise

    started = time.perf_counter()
    with pytest.raises(RewardError) as caught:
        score(one(own, timeout_s=0.2), samples=SAMPLES[:1], texts=TEXTS[:1])
    assert time.perf_counter() - started < 5
    told = str(caught.value)
    assert "reward 'mine.py:own' on sample where, completion 1 took longer than 0.2 s, at test_reward_set.py:" in told
    assert "rewards.timeout_s=0.2" in told


def test_a_regular_expression_that_never_ends_is_interrupted() -> None:
    with pytest.raises(TimeUp, match="the call took longer than 0.2 s"), time_limit(0.2, "the call"):
        re.match(r"(a|aa)+$", "a" * 200 + "b")


def test_the_alarm_is_put_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(5.0, "nothing"):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert all(t.finished.is_set() for t in threading.enumerate() if isinstance(t, threading.Timer))


def test_what_cannot_be_interrupted_ends_the_process_and_says_what() -> None:
    """In a thread that is not the main one no signal helps: the watchdog ends the process."""
    code = (
        "import threading, time\n"
        "from medmo_recipes.reinforcement.reward_calls import time_limit\n"
        "time_limit.GRACE_S = 0.2\n"
        "def hang():\n"
        "    with time_limit.time_limit(0.2, \"reward 'slow' on sample ct-7, completion 1\"):\n"
        "        time.sleep(60)\n"
        "thread = threading.Thread(target=hang)\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == HUNG
    assert "reward 'slow' on sample ct-7, completion 1 took longer than 0.2 s" in done.stderr
    assert "in hang" in done.stderr


def test_coroutines_are_awaited_side_by_side() -> None:
    async def slow(completions: list[Any], **columns: Any) -> list[float]:
        await asyncio.sleep(0.3)
        return [float(len(completions))] * len(completions)

    class Slow:
        async def __call__(self, completions: list[Any], **columns: Any) -> list[None]:
            await asyncio.sleep(0.3)
            return [None] * len(completions)

    started = time.perf_counter()
    found = score(RewardSet({"a.py:slow": slow, "b.py:slow": Slow(), "answer": REWARDS["answer"]}))
    assert time.perf_counter() - started < 0.55
    assert list(found) == ["a.py:slow", "b.py:slow", "answer"]
    assert found["a.py:slow"] == [3.0] * 3 and found["b.py:slow"] == [None] * 3


def test_a_coroutine_that_fails_or_hangs_is_named() -> None:
    async def fails(completions: list[Any], **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return [1.0 / (chat[0]["content"] != "Yes.") for chat in completions]

    async def hangs(**columns: Any) -> list[float]:
        await asyncio.sleep(60)
        return []

    async def blocks(**columns: Any) -> list[float]:
        time.sleep(60)
        return []

    assert "failed on sample which, completion 1: ZeroDivisionError" in failing(fails)
    for function, pattern in (
        (hangs, "'mine.py:own' on 3 completions .* took longer than 0.2 s"),
        (blocks, r"'mine.py:own'.*never awaits, took longer than .* s, at test_reward_set.py:"),
    ):
        rewards = one(function, timeout_s=0.2)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RewardError, match=pattern):
            patch.setattr("medmo_recipes.reinforcement.reward_calls.reward_set.GRACE_S", 0.2)
            score(rewards)


def test_logged_metrics_and_extras_are_of_one_step() -> None:
    def own(completions: list[Any], log_metric: Any, log_extra: Any, **columns: Any) -> list[float]:
        log_metric("words", 7)
        log_extra("note", ["a", "b", "c"])
        return [0.0] * len(completions)

    rewards = one(own)
    generations = [Generation(), Generation(), Generation()]

    def again(step: int) -> None:
        rewards.score(SAMPLES, TEXTS, generations, prompts=[""] * 3, profile=QWEN3_VL, step=step, max_steps=9)

    again(0), again(0)
    assert rewards.metrics == {"words": [7.0, 7.0]}
    assert [rewards.extra(g) for g in generations] == [{"note": "a"}, {"note": "b"}, {"note": "c"}]
    again(1)
    assert rewards.metrics == {"words": [7.0]}


def test_an_extra_of_the_wrong_length_is_an_error_of_the_reward() -> None:
    def own(log_extra: Any, completions: list[Any], **columns: Any) -> list[float]:
        log_extra("note", ["a"])
        return [0.0] * len(completions)

    assert "mine.py:own' failed on 3 completions" in failing(own)


def test_names_lead_to_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Brief:\n"
        "    most: int = 3\n    def __call__(self, completions, **columns):\n        return [1.0] * len(completions)\n"
        "brief = Brief()\ndef other(completions, **columns):\n    return [0.0] * len(completions)\n"
    )
    brief, other = find_reward(f"{tmp_path}/own.py:brief"), find_reward(f"{tmp_path}/own.py:other")
    assert brief(["a"]) == [1.0] and other.__module__ == type(brief).__module__  # the file ran once
    monkeypatch.chdir(tmp_path)
    assert find_reward("own.py:brief") is brief
    assert find_reward("medmo_core.rewards:box_reward") is box_reward
    assert find_reward("answer") is REWARDS["answer"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("anwser", "unknown reward in rewards.weights 'anwser': did you mean 'answer'"),
        ("medmo_core.rewards:box_rewrd", "'box_rewrd': did you mean 'box_reward'"),
        ("nowhere.py:own", r"there is no file nowhere.py \(seen from "),
        ("no_such_package.rewards:own", "importing it failed: ModuleNotFoundError: No module named 'no_such_package'"),
        ("medmo_core.rewards.box:RISE", "RISE of medmo_core.rewards.box is no function but 0.5"),
        ("BROKEN:own", r"importing it failed: NameError: name 'undefined' is not defined \(broken.py:1\)"),
        ("QUITS:own", r"importing it failed: SystemExit: 0 \(quits.py:1\)"),
        ("ODD:needs", r"cannot be called as rewards are: missing a required argument: 'weight'"),
        ("ODD:narrow", r"cannot be called as rewards are: got an unexpected keyword argument 'prompts'"),
    ],
)
def test_a_name_that_leads_nowhere_says_so(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("undefined\n")
    (tmp_path / "odd.py").write_text(
        "def needs(completions, weight, **columns):\n    return []\n\ndef narrow(completions):\n    return []\n"
    )
    (tmp_path / "quits.py").write_text("raise SystemExit(0)\n")
    for word in ("QUITS", "BROKEN", "ODD"):
        name = name.replace(word, f"{tmp_path}/{word.lower()}.py")
    with pytest.raises(ConfigError, match=message):
        find_reward(name)


def test_some_weight_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="at least one weight above 0"):
        RewardSet.from_config(Rewards(weights={"answer": 0.0}))


def test_a_failure_ends_all_processes_with_the_cause(run_processes: Callable[..., list[Any]]) -> None:
    def own(completions: list[Any], **columns: Any) -> list[float]:
        raise ValueError("no judge")

    def work() -> str:
        from medmo_recipes.training.distributed.world import connect

        with connect("cpu") as world:
            function = own if world.rank == 1 else REWARDS["answer"]
            try:
                with world.together("scoring completions"):
                    score(one(function))
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        return "went on"

    main, other = run_processes(work)
    assert "RewardError: reward 'mine.py:own' failed on sample where, completion 1: ValueError: no judge" in other
    assert "ProcessFailed: scoring completions failed on another process; process 1: RewardError: reward" in main


def test_a_long_value_is_cut() -> None:
    assert len(reward_call._shown("x" * 500)) < 100

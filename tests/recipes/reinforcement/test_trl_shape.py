"""TRL's shape, held to TRL: its own calling code scores our rewards, and its rewards run in ours.

The trainer needs libraries that have nothing to do with rewards, so the function that calls them is compiled by itself
from the installed file.
"""

import ast
import asyncio
import contextlib
import functools
import importlib.util
import inspect
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medmo_core.data.records.sample import Answer, BoxAnnotation, Fact, ImageRef, Sample
from medmo_core.generation.decoding import Generation
from medmo_core.profile import QWEN3_VL
from medmo_core.rewards import REWARDS, plain_row
from medmo_recipes.reinforcement.reward_calls.find_reward import ARGUMENTS
from medmo_recipes.reinforcement.reward_calls.reward_set import RewardSet, reward_columns
from medmo_recipes.settings.run_config import Rewards

SPEC = importlib.util.find_spec("trl")
if SPEC is None or SPEC.origin is None:
    pytest.skip("trl is not installed", allow_module_level=True)
TRAINER = Path(SPEC.origin).parent / "trainer"

IMAGE = ImageRef("ct.png", width=200, height=100)
SAMPLES = (
    Sample("where", "grounding", (IMAGE,), boxes=(BoxAnnotation("liver", (20.0, 10.0, 60.0, 50.0)),),
           answer=Answer("boxes")),
    Sample("which", "vqa", (IMAGE,), answer=Answer("yesno", "yes")),
    Sample("pair", "grounding", (IMAGE, ImageRef("before.png", width=50, height=80)),
           boxes=(BoxAnnotation("liver", (5.0, 8.0, 25.0, 40.0), image=1),), answer=Answer("boxes")),
    Sample("what", "report", (IMAGE,), facts=(Fact("liver"),), answer=Answer("report", "The liver is visible.")),
)  # fmt: skip
TEXTS = (
    '[{"bbox_2d": [100, 100, 180, 500], "label": "liver"}]', "<think>\nhm\n</think>\nNo.",
    '[{"image": 2, "bbox_2d": [100, 100, 500, 500], "label": "liver"}]', "The liver is visible. " * 2,
)  # fmt: skip
TOKENS = ([1, 2, 3, 4], [5, 5, 5, 5, 5], [8, 8], [6, 7])


def function_of(file: str, name: str, scope: dict[str, Any]) -> Callable[..., Any]:
    """Compile one function of TRL's source by itself."""
    tree = ast.parse((TRAINER / file).read_text(encoding="utf-8"))
    found = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)
    found.decorator_list = []
    found.returns = None
    for argument in found.args.args:
        argument.annotation = None
    exec(compile(ast.Module([found], []), str(TRAINER / file), "exec"), scope)
    return scope[name]


@contextlib.contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def trl_scores(functions: Sequence[Callable[..., Any]], step: int = 3) -> list[list[float]]:
    """Return what TRL's trainer makes of rewards: a row per completion, NaN where one does not apply."""
    is_async = function_of("utils.py", "is_async_callable", {"functools": functools, "inspect": inspect})
    scope = {
        "torch": torch, "nn": torch.nn, "asyncio": asyncio, "is_async_callable": is_async, "gather": lambda x: x,
        "PreTrainedModel": torch.nn.Module, "logger": logging.getLogger("trl"),
        "profiling_context": lambda *_: contextlib.nullcontext(),
    }  # fmt: skip
    calculate = function_of("grpo_trainer.py", "_calculate_rewards", scope)
    rows = [{"prompt": [], "image": None, **plain_row(reward_columns(sample, QWEN3_VL))} for sample in SAMPLES]
    rows = json.loads(json.dumps(rows))  # what a data set can hold
    with running_loop() as loop:
        trainer = SimpleNamespace(
            accelerator=SimpleNamespace(device="cpu"), reward_funcs=functions,
            reward_processing_classes=[None] * len(functions), reward_func_names=[str(f) for f in functions],
            state=SimpleNamespace(global_step=step, max_steps=10), environments=None, async_loop=loop,
            _log_completion_extra=lambda column, values: None, _log_metric=lambda name, value: None,
        )  # fmt: skip
        prompts = [[{"role": "user", "content": f"prompt of {sample.id}"}] for sample in SAMPLES]
        completions = [[{"role": "assistant", "content": text}] for text in TEXTS]
        return calculate(trainer, rows, prompts, completions, list(TOKENS)).tolist()


def our_scores(rewards: RewardSet, step: int = 3) -> list[list[float]]:
    generations = [Generation(tokens[:-1], [0.0] * len(tokens), True, tokens[-1]) for tokens in TOKENS]
    prompts = [f"prompt of {sample.id}" for sample in SAMPLES]
    scores = rewards.score(SAMPLES, TEXTS, generations, prompts=prompts, profile=QWEN3_VL, step=step, max_steps=10)
    return [
        [float("nan") if scores[n][i] is None else scores[n][i] for n in rewards.names] for i in range(len(SAMPLES))
    ]


@pytest.mark.parametrize("step", [0, 3, 9])  # a curriculum reads the same point of the run
def test_our_rewards_score_the_same_in_trl(step: int) -> None:
    rewards = RewardSet.from_config(Rewards(weights=dict.fromkeys(REWARDS, 1.0)))
    found = trl_scores(list(REWARDS.values()), step)
    assert found == [pytest.approx(row, nan_ok=True) for row in our_scores(rewards, step)]
    applies = [sum(value == value for value in row) for row in found]
    assert min(applies) >= 2  # each sample has rewards that apply


def test_a_reward_sees_in_trl_what_it_sees_here_but_whether_an_answer_was_cut() -> None:
    seen: list[dict[str, Any]] = []

    def own(**everything: Any) -> list[float]:
        seen.append(everything)
        return [0.0] * len(everything["completions"])

    trl_scores([own])
    our_scores(RewardSet({"own.py:own": own}))
    theirs, ours = seen
    assert theirs.keys() - {"image"} == ours.keys() - {"finished"} == set(ARGUMENTS) - {"finished"}
    for key in ("prompts", "completions", "completion_ids"):
        assert theirs[key] == ours[key], key
    for key in reward_columns(SAMPLES[0], QWEN3_VL):
        assert theirs[key] == json.loads(json.dumps([plain_row({key: value})[key] for value in ours[key]])), key


def test_functions_written_for_trl_run_here() -> None:
    """Two that TRL ships, found by their module; one reads chats, one the token ids."""

    async def judge(completions: list[Any], solution: list[str | None], **kwargs: Any) -> list[float | None]:
        await asyncio.sleep(0)
        return [None if s is None else float(s in c[0]["content"]) for c, s in zip(completions, solution, strict=True)]

    from trl.rewards import get_repetition_penalty_reward, think_format_reward

    functions = {
        "trl.rewards:think_format_reward": think_format_reward,
        "own.py:repetition": get_repetition_penalty_reward(ngram_size=2),
        "own.py:judge": judge,
    }
    found = trl_scores(list(functions.values()))
    assert our_scores(RewardSet(functions)) == [pytest.approx(row, nan_ok=True) for row in found]
    assert [row[0] for row in found] == [0.0, 1.0, 0.0, 0.0]
    assert [row[1] for row in found] == [0.0, -0.75, 0.0, 0.0]
    assert found[0][2] != found[0][2] and (found[1][2], found[3][2]) == (0.0, 1.0)
    named = RewardSet.from_config(Rewards(weights={"trl.rewards:think_format_reward": 1.0}))
    assert [row[0] for row in our_scores(named)] == [0.0, 1.0, 0.0, 0.0]


def test_another_shape_is_noticed() -> None:
    """A reward whose score hangs on what TRL does not give differs between the two."""

    def own(completions: list[Any], finished: list[bool] | None = None, **columns: Any) -> list[float]:
        return [float(finished is not None)] * len(completions)

    assert trl_scores([own]) != our_scores(RewardSet({"own.py:own": own}))

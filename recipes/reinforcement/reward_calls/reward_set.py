"""The rewards of a run, called as TRL calls them.

Every reward is called with keywords: `prompts`, `completions` and `completion_ids`, one value per completion;
`trainer_state` with `global_step` and `max_steps`; `log_extra(column, values)` and `log_metric(name, value)`; and the
columns, lists with one value per completion. It returns one number per completion, None where it does not apply. It
may be a coroutine function: those of a run are awaited together. A reward that names the keyword `parsed_boxes` also
gets the boxes of the completions, which are read once for all.

Functions given by module or file get prompts and completions as chats (`[{"role": ..., "content": text}]`), the form
that TRL uses wherever there are images. Rewards of our own table read chats and texts and get the texts.

Shapes: N completions.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from medmo_core.boxes import AnyBoxes, ParsedBoxes
from medmo_core.data.records.sample import Sample
from medmo_core.generation.decoding import Generation
from medmo_core.profile import CheckpointProfile
from medmo_core.rewards import REWARDS
from medmo_core.rewards.box_answers import ParsedAnswers, answer_places, parse_answers

from ...settings.run_config import Rewards, require
from .error_place import told
from .find_reward import PARSED_BOXES, SAMPLE_COLUMNS, asks_for, find_reward
from .reward_call import RewardCall, RewardError
from .time_limit import GRACE_S, TimeUp, time_limit


@dataclass(frozen=True)
class TrainerState:
    """Progress of the run, by TRL's names.

    Attributes:
        global_step: finished steps.
        max_steps: steps of the whole run.
    """

    global_step: int
    max_steps: int


def reward_columns(sample: Sample, profile: CheckpointProfile) -> dict[str, Any]:
    """Return what rewards read of a sample, by the names of their keywords; a row of a TRL data set takes the same.

    Args:
        sample: the example; its boxes and image sizes in px.
        profile: how the model writes boxes.

    Returns:
        task; answer (an `Answer` or None); solution, the answer's text or None; boxes, the true `Boxes`, None without
        an image; facts; image_size, (width, height) px or None; num_images; profile; sample_id.
    """
    solution = None if sample.answer is None else sample.answer.value
    values = (
        sample.task, sample.answer, solution, sample.truth_boxes(), sample.facts, sample.image_size(),
        len(sample.images), profile, sample.id,
    )  # fmt: skip
    return dict(zip(SAMPLE_COLUMNS, values, strict=True))


def parse_completions(
    samples: Sequence[Sample], texts: Sequence[str], profile: CheckpointProfile
) -> list[ParsedBoxes[AnyBoxes] | None]:
    """Read the boxes of completions, for rewards, figures and pages.

    Args:
        samples: (N,) sample of each completion.
        texts: (N,) completions.
        profile: how the model writes boxes.

    Returns:
        (N,) boxes as `profile.parse_boxes` reads them; None where the task is not grounding.
    """
    distinct = list({id(sample): sample for sample in samples}.values())
    places = answer_places([s.truth_boxes() for s in distinct], [s.image_size() for s in distinct])
    where = {id(sample): place for sample, place in zip(distinct, places, strict=True)}
    return parse_answers(texts, [s.task for s in samples], [where[id(s)] for s in samples], profile)


class RewardSet:
    """Score completions by every reward of a run.

    Args:
        functions: name -> reward.
        timeout_s: longest time of one call.

    Attributes:
        names: names of the rewards, in order.
        seconds: name -> time spent in the current step; coroutines count the time they are awaited together.
        metrics: name -> values that rewards gave to `log_metric` in the current step.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]], *, timeout_s: float = 60.0) -> None:
        self.functions, self.timeout_s = dict(functions), timeout_s
        self.names = tuple(self.functions)
        self._begin(None)

    def _begin(self, step: int | None) -> None:
        self._step = step
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.metrics: defaultdict[str, list[float]] = defaultdict(list)
        self._extra: list[tuple[Generation, str, Any]] = []

    @classmethod
    def from_config(cls, rewards: Rewards) -> Self:
        """Find the functions that a config names.

        Raises:
            ConfigError: a reward that cannot be found or called, or no weight above 0.
        """
        positive = any(weight > 0 for weight in rewards.weights.values())
        require(positive, "rewards.weights", dict(rewards.weights), "at least one weight above 0")
        return cls({name: find_reward(name) for name in rewards.weights}, timeout_s=rewards.timeout_s)

    def score(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str],
        generations: Sequence[Generation],
        *,
        prompts: Sequence[str],
        profile: CheckpointProfile,
        parsed_boxes: ParsedAnswers | None = None,
        step: int,
        max_steps: int,
    ) -> dict[str, list[float | None]]:
        """Score completions by every reward.

        Args:
            samples: (N,) one per completion.
            texts: (N,) what the model wrote.
            generations: (N,) tokens, and whether the model stopped by itself.
            prompts: (N,) texts.
            profile: how the model writes boxes.
            parsed_boxes: (N,) boxes of the completions (`parse_completions`); None: they are read here.
            step: finished steps; `seconds`, `metrics` and `extra` are of one step and begin anew with the next.
            max_steps: number of steps of the run.

        Returns:
            Reward name -> (N,) values; None where it does not apply.

        Raises:
            RewardError: a reward raised, took too long, or returned something else than N numbers or None.
        """
        if step != self._step:
            self._begin(step)
        if parsed_boxes is None:
            parsed_boxes = parse_completions(samples, texts, profile)
        distinct = {id(sample): sample for sample in samples}
        rows = {key: reward_columns(sample, profile) for key, sample in distinct.items()}
        lists: dict[str, list[Any]] = {key: [rows[id(s)][key] for s in samples] for key in SAMPLE_COLUMNS}
        lists["finished"] = [g.finished for g in generations]
        lists["completion_ids"] = [[*g.tokens, *([] if g.stop_token is None else [g.stop_token])] for g in generations]
        texts_only = {"prompts": list(prompts), "completions": list(texts)}
        chats = {
            "prompts": [[{"role": "user", "content": text}] for text in prompts],
            "completions": [[{"role": "assistant", "content": text}] for text in texts],
        }

        def log_extra(column: str, values: Sequence[Any]) -> None:
            self._extra += [(g, column, value) for g, value in zip(generations, values, strict=True)]

        fixed = {
            "trainer_state": TrainerState(step, max_steps), "log_extra": log_extra, "log_metric": self._log_metric,
        }  # fmt: skip
        calls = []
        for name, function in self.functions.items():
            given = lists | (texts_only if name in REWARDS else chats)
            if asks_for(function, PARSED_BOXES):
                given = given | {PARSED_BOXES: list(parsed_boxes)}
            own = {key: list(values) for key, values in given.items()}  # whatever a reward does to its lists
            calls.append(RewardCall(name, function, own, fixed, samples))
        results = self._run(calls) | self._await([call for call in calls if call.is_async])
        return {call.name: call.checked(results[call.name]) for call in calls}

    def extra(self, generation: Generation) -> dict[str, Any]:
        """Return what rewards gave to `log_extra` for a completion of the current step."""
        return {column: value for known, column, value in self._extra if known is generation}

    def _log_metric(self, name: str, value: float) -> None:
        self.metrics[name].append(float(value))

    def _run(self, calls: Sequence[RewardCall]) -> dict[str, Any]:
        results = {}
        for call in calls:
            if not call.is_async:
                started = time.perf_counter()
                results[call.name] = call.run(self.timeout_s)
                self.seconds[call.name] += time.perf_counter() - started
        return results

    def _await(self, calls: Sequence[RewardCall]) -> dict[str, Any]:
        """Run coroutine functions side by side."""
        if not calls:
            return {}

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(call.run_async(self.timeout_s) for call in calls), return_exceptions=True)

        started = time.perf_counter()
        names = ", ".join(repr(call.name) for call in calls)
        try:
            with time_limit(self.timeout_s + GRACE_S, f"one of the rewards {names}, which never awaits,"):
                outcomes = asyncio.run(all_of_them())
                for outcome in outcomes:  # an interrupt, which a task keeps like any error
                    if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                        raise outcome
        except TimeUp as error:
            raise RewardError(f"{error}; rewards.timeout_s={self.timeout_s:g} is the limit of one call") from error
        except SystemExit as error:  # of a task that a reward began
            raise RewardError(f"one of the rewards {names} failed: {told(error)}") from error
        for call, outcome in zip(calls, outcomes, strict=True):
            self.seconds[call.name] += time.perf_counter() - started
            if isinstance(outcome, Exception):
                raise call.failure(outcome, self.timeout_s) from outcome
        return {call.name: outcome for call, outcome in zip(calls, outcomes, strict=True)}

"""Sampling many short answers: a prompt run once per group, and rows that are refilled as answers end.

- Shared prefill: short answers to one large image. The other ways run the prompt in each row, with the image encoded
  for each row or once for all. Sampled answers must have the log-probabilities of the plain forward pass of training;
  so must greedy ones in float64, with a small image and small widths, where each token is also the most likely.
- Refill: many answers to prompts of text, each token the last with odds of 1 to 20. Rows are refilled as answers end,
  or a part of the prompts is sampled after the other, with rows dropped as answers end. On a CPU both give the same
  answers; on a GPU, where bf16 turns some, both have the log-probabilities of the plain pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.models import Generation, MedMO
from medmo_recipes.reinforcement.engine import InPlaceEngine, Request
from medmo_recipes.reinforcement.groups import sampled_tokens
from medmo_recipes.settings.run_config import Rollout

from ..suite.comparison import OURS, Comparison, Ready, Way, Work, weakest
from ..suite.made_once import Shared
from ..suite.schema import Check
from .agreement import check_greedy, check_logps, plain_pass
from .documents import make_prompt, unshared
from .layouts import EACH_ROW, WAYS, LayoutShape, shape_of

ANSWERS, LENGTH = 8, 40
DIRECTION = "rollout"
FIXED = "fixed batches"
Groups = list[list[Generation]]


def prefill(shape: LayoutShape, model: MedMO, way: str, temperature: float) -> Callable[[], Groups]:
    """Return a call that samples answers to one prompt in one of the ways."""
    prompt, each = shape.prompt(model), 1
    if way == OURS:
        items, each = [prompt], shape.answers
    elif way == EACH_ROW:
        items = [unshared(prompt) for _ in range(shape.answers)]
    else:
        items = [prompt] * shape.answers
    batch = pack(items)
    settings: dict[str, Any] = {"max_new_tokens": shape.length, "temperature": temperature, "stop_token_ids": ()}
    return lambda: model.generate(batch.to(model.head_weight.device), num_generations=each, **settings)


def check_prefill(shape: LayoutShape, model: MedMO, way: str, temperature: float) -> Check:
    """Compare answers with the plain pass; greedy ones (temperature 0) must be the most likely."""
    answers = [answer for group in prefill(shape, model, way, temperature)() for answer in group]
    scored = plain_pass(model, [shape.prompt(model)], [[answer.tokens for answer in answers]])
    logps = check_logps(scored, [logp for answer in answers for logp in answer.logps], shape.dtype)
    return logps if temperature else weakest(logps, check_greedy(scored, shape.dtype))


def compare_prefill(shape: LayoutShape, device: torch.device, **place: Any) -> Comparison:
    """Compare a prompt run once with a prompt in each row."""
    model = Shared(partial(shape.model, device))

    def build(way: str) -> Ready:
        on, small = model().eval(), shape.small
        exact = check_prefill(small, small.model(torch.device("cpu")).eval(), way, 0.0)
        return Ready({DIRECTION: prefill(shape, on, way, 1.0)}, weakest(exact, check_prefill(shape, on, way, 1.0)))

    return Comparison(
        level="recipes",
        subject="rollout",
        case=shape.case,
        dtype=str(shape.dtype).removeprefix("torch."),
        directions=(DIRECTION,),
        ways=[Way(name, partial(build, name), "ours" if name == OURS else "peer") for name in WAYS],
        work={DIRECTION: Work(items=shape.answers * shape.length, unit="tokens")},  # of the answers
        repeats=5,
        **place,
    )


@dataclass(frozen=True)
class Uneven:
    """Answers of uneven lengths to many prompts.

    Attributes:
        shape: shape of the model; its answers are those of one prompt.
        prompts: number of text prompts.
        prompt_length: tokens of each.
        longest: tokens of the longest answer.
        rows: number of rows decoded at the same time.
        stop_share: number of tokens of which one ends an answer.
    """

    shape: LayoutShape
    prompts: int = 24
    prompt_length: int = 80
    longest: int = 128
    rows: int = 64
    stop_share: int = 20

    @property
    def settings(self) -> Rollout:
        """How to sample."""
        return Rollout(num_generations=self.shape.answers, max_new_tokens=self.longest, rows_per_pass=self.rows)

    def requests(self, model: MedMO) -> list[Request]:
        """Draw the prompts."""
        names = [f"prompt {number}" for number in range(self.prompts)]
        prompts = [make_prompt(model.config, (), self.prompt_length, name=n, seed=i) for i, n in enumerate(names)]
        return [Request(name, prompt) for name, prompt in zip(names, prompts, strict=True)]

    def sampling(self, model: MedMO, way: str) -> Callable[[], Groups]:
        """Return a call that samples all answers in one of the ways."""
        engine = InPlaceEngine(model, range(0, model.config.text.vocab_size, self.stop_share))
        requests, chunk = self.requests(model), self.prompts
        if way == FIXED:
            chunk = self.rows // self.shape.answers
        chunks = [requests[start : start + chunk] for start in range(0, self.prompts, chunk)]
        return lambda: [group for part in chunks for group in engine.sample(part, self.settings, seed=0)]


def compare_refill(uneven: Uneven, device: torch.device) -> Comparison:
    """Compare rows that are refilled with fixed batches."""
    shape = uneven.shape
    model = Shared(partial(shape.model, device))
    sampled: dict[str, list[list[list[int]]]] = {}

    def tokens_of(way: str) -> list[list[list[int]]]:
        if way not in sampled:
            groups = uneven.sampling(model().eval(), way)()
            sampled[way] = [[sampled_tokens(answer) for answer in group] for group in groups]
        return sampled[way]

    def same_answers(way: str) -> Check:
        other = FIXED if way == OURS else OURS
        found, truth = ([answer for group in tokens_of(name) for answer in group] for name in (way, other))
        differing = sum(a != b for a, b in zip(found, truth, strict=True)) / len(truth)
        return Check(f"answers of {other}", differing, 0.01)  # single precision may turn one in a thousand

    def build(way: str) -> Ready:
        on = model().eval()
        call = uneven.sampling(on, way)
        return Ready({DIRECTION: call}, same_answers(way) if device.type == "cpu" else logps_of(on, call()))

    def logps_of(on: MedMO, groups: Groups) -> Check:
        prompts: Sequence[Document] = [request.prompt for request in uneven.requests(on)]
        scored = plain_pass(on, prompts, [[sampled_tokens(answer) for answer in group] for group in groups])
        return check_logps(scored, [p for group in groups for answer in group for p in answer.logps], shape.dtype)

    answers = uneven.prompts * shape.answers
    return Comparison(
        level="recipes",
        subject="rollout",
        case=f"{shape.model_name}, {answers} answers of 1 to {uneven.longest} tokens, prompts of text",
        dtype=str(shape.dtype).removeprefix("torch."),
        directions=(DIRECTION,),
        ways=[Way(name, partial(build, name), "ours" if name == OURS else "peer") for name in (OURS, FIXED)],
        work={DIRECTION: Work(items=answers, unit="answers")},
        repeats=5,
    )


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    shape = shape_of(device, ANSWERS, LENGTH, short=short)
    uneven = Uneven(shape) if device.type == "cuda" else Uneven(shape, prompts=12, rows=32)
    if short:
        uneven = Uneven(shape, prompts=6, prompt_length=8, longest=9, rows=6, stop_share=4)
    return [compare_prefill(shape, device), compare_refill(uneven, device)]

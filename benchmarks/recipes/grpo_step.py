"""One GRPO step of a whole model, phase by phase, beside transformers' `generate` and a padded update.

A step is a rollout (groups of completions to prompts with one image each), the box reward, and one update (policy
gradient, backward, optimiser), all blocks computed again in the backward pass. Both models have the same weights,
prompts and optimiser, and no completion ends early, so both sample the same number of tokens.

The peer does what TRL does without a server: `generate` on rows that repeat prompt and image, then one forward pass of
a group's rows, log-probabilities of the completion tokens alone (`logits_to_keep`), the same loss. It gets its best:
the fastest attention installed, a matrix product for the patch embedding, completions of one length, so that it pads
nothing, and inputs made beforehand. The reward is the same function on both sides.

Both learn from the same completions: mean log-probability and gradient norm must be those of every completion in a
separate row, on a CPU in float64. What was sampled is held to a plain forward pass.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from medmo_core.boxes import Boxes
from medmo_core.data.document import Document
from medmo_core.models import MedMO
from medmo_core.models.config import ModelConfig
from medmo_core.profile import QWEN3_VL
from medmo_core.rewards import box_reward
from medmo_recipes.reinforcement.completions import Completion, PolicyBatch, pack_completions
from medmo_recipes.reinforcement.engine import InPlaceEngine, Request
from medmo_recipes.settings.run_config import Optim, Rollout
from medmo_recipes.training.optim.optimizer import Optimizer

from ..modules.judged import widened
from ..peers import transformers_model
from ..peers.transformers_model import Flavour
from ..suite.comparison import OURS, Comparison, Ready, Way, Work, weakest
from ..suite.schema import Check
from .agreement import BOUND, check_greedy, check_logps, gradient_norm, plain_pass
from .documents import MODEL_NAMES, answered, make_answers, make_prompt, padded, recomputing_model, unshared

ANSWER = json.dumps([{"bbox_2d": [100 * i, 100, 100 * i + 90, 300], "label": "cell"} for i in range(4)])
"""What the reward reads: completions of a model with random weights hold no boxes."""
Calls = dict[str, Callable[[], Any]]
"""Phase -> do it."""


@dataclass(frozen=True)
class Size:
    """The size of a step.

    Attributes:
        preset: the model.
        prompts: one image each.
        generations: completions per prompt.
        new_tokens: number of tokens of each completion.
        side: side of an image, in patches.
        text: tokens of a prompt beside those of its image.
        dtype: dtype of weights and activations.
        kind: kind of the optimiser.
    """

    preset: str
    prompts: int
    generations: int
    new_tokens: int
    side: int
    text: int
    dtype: torch.dtype
    kind: Any

    @property
    def rows(self) -> int:
        """Completions of a step."""
        return self.prompts * self.generations

    @property
    def advantages(self) -> list[float]:
        """Those of a group."""
        return torch.linspace(-1.0, 1.3, self.generations).tolist()

    def model(self, device: torch.device) -> MedMO:
        """Build our model; the same weights each time."""
        return recomputing_model(self.preset, device, self.dtype)

    def make_prompts(self, config: ModelConfig) -> list[Document]:
        """Draw the prompts."""
        numbers = range(self.prompts)
        return [make_prompt(config, (self.side,), self.text, name=f"image {n}", seed=n) for n in numbers]

    def make_completions(self, config: ModelConfig) -> list[list[list[int]]]:
        """Draw the completions that both sides learn from, per prompt."""
        return [make_answers(config, self.generations, self.new_tokens, seed=n) for n in range(self.prompts)]


SIZES = {
    "cuda": Size("medmo-4b", 4, 8, 64, 80, 40, torch.bfloat16, "adamw_bf16"),
    "cpu": Size("tiny", 1, 8, 16, 16, 20, torch.float32, "adamw"),
    "short": Size("debug", 1, 2, 3, 8, 12, torch.float32, "adamw"),
}
"""By kind of device. 80 patches are 1,280 px and 1,600 visual tokens."""


def groups_of(size: Size, config: ModelConfig, *, shared: bool) -> list[PolicyBatch]:
    """Pack the completions of each prompt, sharing it or each in a separate row."""
    weight = 1.0 / (size.rows * size.new_tokens)
    groups = []
    for prompt, completions in zip(size.make_prompts(config), size.make_completions(config), strict=True):
        items = answered(prompt, completions)
        rows = zip(items if shared else map(unshared, items), size.advantages, strict=True)
        learned = [Completion(item, advantage, weight, [0.0] * size.new_tokens) for item, advantage in rows]
        groups.append(pack_completions(learned, share_prefixes=shared))
    return groups


def learn(model: MedMO, groups: Sequence[PolicyBatch]) -> float:
    """Run the loss of all groups forward and backward; returns the mean log-probability of a token."""
    logps = []
    for group in groups:
        group = group.to(model.head_weight.device)
        policy = model.policy_loss(group.batch, group.advantages, group.token_weights)
        policy.total.backward()
        logps.append(policy.logps)
    return float(torch.cat(logps).mean())


def reward(size: Size) -> Sequence[float | None]:
    """Score as many completions as a step has."""
    columns: dict[str, Any] = {
        "task": ["grounding"],
        "boxes": [Boxes(torch.tensor([[0.0, 10.0, 90.0, 290.0]]), "pixel", (1000, 1000), ("cell",))],
        "image_size": [(1000, 1000)],
        "profile": [QWEN3_VL],
    }
    return box_reward([ANSWER] * size.rows, **{name: values * size.rows for name, values in columns.items()})


def whole(calls: Calls) -> Calls:
    """Add the step as a whole to its phases."""
    return {**calls, "step": lambda: [call() for call in calls.values()]}


class GrpoStep:
    """The ways of the comparison.

    Args:
        size: size of the step.
        device: where it runs.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device
        self.against = "a row each, float64" if device.type == "cpu" else "a row each"
        self.truth: tuple[float, float] | None = None

    def exact(self, model: MedMO) -> MedMO:
        """Return the model that gives the truth: one in float64, or the model itself where that is too large."""
        return widened(model) if self.device.type == "cpu" else model

    def checks_of(self, model: MedMO, mean: float, norm: float) -> list[Check]:
        """Compare mean log-probability and gradient norm with those of rows."""
        if self.truth is None:
            exact = self.exact(model)
            exact.zero_grad()
            found = learn(exact, groups_of(self.size, exact.config, shared=False))
            self.truth = found, float(gradient_norm(exact))
            exact.zero_grad()
        errors = [abs(got / true - 1) for got, true in zip((mean, norm), self.truth, strict=True)]
        return [Check(f"{what}, {self.against}", error, BOUND[self.size.dtype])
                for what, error in zip(("log-probability", "gradient norm"), errors, strict=True)]  # fmt: skip

    def ours(self) -> Ready:
        """Build our side."""
        size, model = self.size, self.size.model(self.device)
        config, prompts = model.config, size.make_prompts(model.config)
        settings = Rollout(num_generations=size.generations, max_new_tokens=size.new_tokens, rows_per_pass=10_000)
        engine, requests = InPlaceEngine(model, ()), [Request(prompt.sample.id, prompt) for prompt in prompts]
        sampled = engine.sample(requests, settings, seed=0)
        scored = plain_pass(self.exact(model), prompts, [[answer.tokens for answer in group] for group in sampled])
        logps = check_logps(scored, [p for group in sampled for answer in group for p in answer.logps], size.dtype)
        mean = learn(model, groups_of(size, config, shared=True))
        norm = float(gradient_norm(model))
        model.zero_grad()
        checks = self.checks_of(model, mean, norm)
        optimizer = Optimizer(model, Optim(kind=size.kind, clip_norm=0.0), steps=1000)

        def update() -> None:
            learn(model, groups_of(size, config, shared=True))
            optimizer.step(0)

        calls: Calls = {"rollout": partial(engine.sample, requests, settings, seed=0)}
        calls |= {"reward": partial(reward, size), "update": update}
        return Ready(whole(calls), weakest(logps, *checks))

    def theirs(self, flavour: Flavour) -> Ready:
        """Build a flavour of transformers' model with the weights of ours."""
        size, model = self.size, self.size.model(self.device)
        theirs = transformers_model.build(model, flavour, dtype=size.dtype, train=True)
        side = TheirSide(theirs, size, model.config, self.device)
        # Before it has learned: it has our weights.
        prompts = size.make_prompts(model.config)
        greedy = check_greedy(plain_pass(self.exact(model), prompts, side.sample(do_sample=False)), size.dtype)
        mean = side.learn()
        checks = self.checks_of(model, mean, float(gradient_norm(theirs)))
        theirs.zero_grad()
        optimizer = Optimizer(theirs, Optim(kind=size.kind, clip_norm=0.0), steps=1000)

        def update() -> None:
            side.learn()
            optimizer.step(0)

        calls = whole({"rollout": side.sample, "reward": partial(reward, size), "update": update})
        del calls["reward"]  # by itself it is the same call
        return Ready(calls, weakest(greedy, *checks))


class TheirSide:
    """A step of transformers' model.

    Args:
        model: transformers'.
        size: size of the step.
        config: config of our model.
        device: where it runs.
    """

    def __init__(self, model: Any, size: Size, config: ModelConfig, device: torch.device) -> None:
        self.model, self.size, self.device = model, size, device
        prompts, completions = size.make_prompts(config), size.make_completions(config)
        rows = [prompt for prompt in prompts for _ in range(size.generations)]
        self.prompts = {name: t.to(device) for name, t in padded(rows, config, size.dtype).items()}
        self.groups = []
        for prompt, tokens in zip(prompts, completions, strict=True):
            inputs = padded(answered(prompt, tokens), config, size.dtype)
            del inputs["labels"]
            self.groups.append({name: tensor.to(device) for name, tensor in inputs.items()})

    def sample(self, *, do_sample: bool = True) -> list[list[list[int]]]:
        """Continue every prompt; returns the tokens of each completion."""
        size = self.size
        self.model.eval()
        with torch.no_grad():
            how: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if do_sample else {}
            rows = self.model.generate(
                **self.prompts, do_sample=do_sample, **how, use_cache=True, max_new_tokens=size.new_tokens,
                min_new_tokens=size.new_tokens, pad_token_id=0,
            )[:, -size.new_tokens :]  # fmt: skip
        return rows.view(size.prompts, size.generations, -1).tolist()

    def learn(self) -> float:
        """Run the loss of all groups forward and backward; returns the mean log-probability of a token."""
        size = self.size
        self.model.train()
        factors = torch.tensor(size.advantages, device=self.device)[:, None] / (size.rows * size.new_tokens)
        means = []
        for inputs in self.groups:
            logits = self.model(**inputs, use_cache=False, logits_to_keep=size.new_tokens + 1).logits[:, :-1]
            targets = inputs["input_ids"][:, -size.new_tokens :, None]
            logps = logits.gather(2, targets).squeeze(2).float() - logits.float().logsumexp(-1)
            (-(logps - logps.detach()).exp() * factors).sum().backward()
            means.append(logps.detach().mean())
        return float(torch.stack(means).mean())


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    cuda = device.type == "cuda"
    size = SIZES["short" if short and not cuda else device.type]
    both = GrpoStep(size, device)
    flavour, absent = next(found for found in transformers_model.flavours(device) if found[0].linear_patch_embed)
    ways = [Way(OURS, both.ours, "ours"), Way(flavour.name, partial(both.theirs, flavour), absent=absent)]
    tokens = Work(items=size.rows * size.new_tokens, unit="tokens")  # of the completions
    work = {"step": tokens, "rollout": tokens, "update": tokens, "reward": Work(items=size.rows, unit="completions")}
    named = MODEL_NAMES.get(size.preset, size.preset)
    case = f"{named}, {size.prompts} x {size.generations} completions of {size.new_tokens} tokens, {16 * size.side} px"
    return [
        Comparison("recipes", "grpo_step", case, str(size.dtype).removeprefix("torch."), tuple(work), ways, work,
                   seconds=60 if cuda else 3, repeats=10, apart=cuda),
    ]  # fmt: skip

"""One GRPO step of a whole model, phase by phase, beside transformers' `generate` and a padded update, in the same run.

    python -m benchmarks.bench_grpo_step --out results                                  # what fits the machine
    python -m benchmarks.bench_grpo_step --out results --preset medmo-4b --device cuda  # random weights

A step is a rollout (groups of completions to prompts with one image each), the box reward, and one update (policy
gradient with one update per batch, backward, optimiser), all blocks computed again in the backward pass. Both models
have the same weights, prompts and optimiser, and no completion ends early, so both sample the same number of tokens.

The peer does what TRL does without a server: `generate` on rows that repeat prompt and image, then one forward pass of
a group's rows, right-padded completions, log-probabilities of the completion tokens alone (`logits_to_keep`), the same
loss. It gets its best as in `bench_step`: flash attention where installed, a matrix product for the patch embedding,
completions of one length, so that it pads nothing. Both update on the same completions: it is timed only where mean
log-probability and gradient norm are ours.
"""

import argparse
import gc
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmo_core.batch import mrope_position_ids
from medmo_core.boxes import Boxes
from medmo_core.data.process import Item
from medmo_core.data.record import Sample
from medmo_core.models.config import ModelConfig
from medmo_core.models.medmo import MedMO
from medmo_core.profile import QWEN3_VL
from medmo_core.rewards import box_reward
from medmo_recipes.training.config import Optim, Rollout
from medmo_recipes.training.engine import InPlaceEngine, Request
from medmo_recipes.training.optim import Optimizer
from medmo_recipes.training.rollout import Completion, join, pack_completions

from .bench_kernels import header
from .bench_step import best_attention, linear_patch_embed
from .timing import time_ways

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Relative difference of mean log-probability and of the gradient's norm: bf16 rounds every activation."""
PHASES = ("rollout", "reward", "update")
ANSWER = json.dumps([{"bbox_2d": [100 * i, 100, 100 * i + 90, 300], "label": "cell"} for i in range(4)])
"""What the reward reads: completions of a model with random weights hold no boxes."""


@dataclass(frozen=True)
class Size:
    """What a step is made of.

    Attributes:
        preset: the model.
        prompts: one image each.
        generations: completions per prompt.
        new_tokens: of each completion.
        side: of an image, in patches.
        text: tokens of a prompt beside those of its image.
        dtype: of weights and activations.
        kind: of the optimiser.
    """

    preset: str
    prompts: int
    generations: int
    new_tokens: int
    side: int
    text: int
    dtype: torch.dtype
    kind: Any


SIZES = {
    "cuda": Size("medmo-4b", 4, 8, 64, 80, 40, torch.bfloat16, "adamw_bf16"),
    "cpu": Size("tiny", 2, 8, 16, 16, 20, torch.float32, "adamw"),
}
"""By kind of device. 80 patches are 1,280 px and 1,600 visual tokens."""


def make_prompts(size: Size, config: ModelConfig) -> list[Item]:
    """Draw prompts: some text, an image, some text."""
    rng, merge = np.random.default_rng(0), config.vision.spatial_merge_size
    visual = (size.side // merge) ** 2
    grid = np.array([[1, size.side, size.side]])
    prompts = []
    for number in range(size.prompts):
        before, after = (rng.integers(0, config.bos_token_id, n).tolist() for n in (4, size.text - 6))
        image = [config.vision_start_token_id, *[config.image_token_id] * visual, config.vision_end_token_id]
        ids = torch.tensor([*before, *image, *after])
        positions = mrope_position_ids(
            ids, torch.from_numpy(grid), merge_size=merge, image_token_id=config.image_token_id,
            video_token_id=config.video_token_id,
        )  # fmt: skip
        prompts.append(
            Item(
                input_ids=ids.numpy(),
                labels=None,
                position_ids=positions.numpy(),
                patches={"qwen3_vl": rng.integers(0, 256, (size.side**2, 3 * config.vision.patch_size**2), np.uint8)},
                image_grid_thw={"qwen3_vl": grid},
                sample=Sample(id=f"image {number}", task="grounding"),
                visual_end=len(before) + len(image) - 1,
            )
        )
    return prompts


def make_completions(size: Size, config: ModelConfig) -> list[list[list[int]]]:
    """Draw the completions that both sides learn from, per prompt."""
    rng = np.random.default_rng(1)
    return rng.integers(0, config.bos_token_id, (size.prompts, size.generations, size.new_tokens)).tolist()


def advantages(size: Size) -> list[float]:
    """Return the advantages of a group."""
    return torch.linspace(-1.0, 1.3, size.generations).tolist()


Side = dict[str, Callable[[], Any]]
"""Phase -> do it. The update returns mean log-probability and gradient norm."""


def our_side(model: MedMO, size: Size) -> Side:
    """Return our phases."""
    model.train()
    model.checkpoint_activations("all")
    prompts = make_prompts(size, model.config)
    device, total = model.head_weight.device, size.prompts * size.generations * size.new_tokens
    optimizer, engine = Optimizer(model, Optim(kind=size.kind, clip_norm=0.0), steps=1000), InPlaceEngine(model, ())
    settings = Rollout(num_generations=size.generations, max_new_tokens=size.new_tokens, rows_per_pass=10_000)
    requests = [Request(prompt.sample.id, prompt) for prompt in prompts]
    columns: dict[str, Any] = {
        "task": ["grounding"],
        "boxes": [Boxes(torch.tensor([[0.0, 10.0, 90.0, 290.0]]), "pixel", (1000, 1000), ("cell",))],
        "image_size": [(1000, 1000)],
        "profile": [QWEN3_VL],
    }
    rows = size.prompts * size.generations

    def update() -> tuple[float, float]:
        logps = []
        for prompt, group in zip(prompts, make_completions(size, model.config), strict=True):
            batch = pack_completions(
                [Completion(join(prompt, tokens), a, 1.0 / total, [0.0] * len(tokens))
                 for tokens, a in zip(group, advantages(size), strict=True)]
            ).to(device)  # fmt: skip
            policy = model.policy_loss(batch.batch, batch.advantages, batch.token_weights)
            policy.total.backward()
            logps.append(policy.logps)
        return float(torch.cat(logps).mean()), optimizer.step(0)[0]

    return {
        "rollout": lambda: engine.sample(requests, settings, seed=0),
        "reward": lambda: box_reward([ANSWER] * rows, **{name: values * rows for name, values in columns.items()}),
        "update": update,
    }


def their_side(model: MedMO, size: Size, attention: str) -> Side:
    """Return the phases of transformers' model with the weights of `model`; the reward is ours."""
    import transformers

    device = model.head_weight.device
    config = transformers.Qwen3VLConfig(**model.config.to_dict())
    build = transformers.Qwen3VLForConditionalGeneration._from_config
    with torch.device(device):
        theirs: Any = build(config, attn_implementation=attention, dtype=size.dtype)
    theirs.load_state_dict(model.state_dict(), strict=False)
    theirs.tie_weights()
    linear_patch_embed(theirs.model.visual.patch_embed)
    theirs.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = Optimizer(theirs, Optim(kind=size.kind, clip_norm=0.0), steps=1000)
    prompts, completions = make_prompts(size, model.config), make_completions(size, model.config)
    total = size.prompts * size.generations * size.new_tokens
    factors = torch.tensor(advantages(size), device=device)[:, None]

    def rows(prompts: Sequence[Item], tokens: Sequence[Sequence[int]] | None) -> dict[str, Tensor]:
        """Repeat each prompt and its image for every completion."""
        ids = torch.cat([torch.from_numpy(p.input_ids).expand(size.generations, -1) for p in prompts])
        if tokens is not None:
            ids = torch.cat([ids, torch.tensor(tokens)], dim=1)
        pixels = torch.cat([torch.from_numpy(p.patches["qwen3_vl"]).repeat(size.generations, 1) for p in prompts])
        patch = model.config.vision.patch_size
        doubled = pixels.view(-1, 3, 1, patch, patch).expand(-1, -1, 2, -1, -1).flatten(1)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == model.config.image_token_id).int(),
            "pixel_values": ((doubled.float() / 255 - 0.5) / 0.5).to(size.dtype),
            "image_grid_thw": torch.tensor([[1, size.side, size.side]]).expand(len(ids), -1),
        }
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def rollout() -> None:
        theirs.eval()
        with torch.no_grad():
            theirs.generate(
                **rows(prompts, None), do_sample=True, temperature=1.0, top_k=0, top_p=1.0, use_cache=True,
                max_new_tokens=size.new_tokens, min_new_tokens=size.new_tokens, pad_token_id=0,
            )  # fmt: skip

    def update() -> tuple[float, float]:
        theirs.train()
        means = []
        for prompt, group in zip(prompts, completions, strict=True):
            inputs = rows([prompt], group)
            logits = theirs(**inputs, use_cache=False, logits_to_keep=size.new_tokens + 1).logits[:, :-1]
            targets = inputs["input_ids"][:, -size.new_tokens :, None]
            logps = logits.gather(2, targets).squeeze(2).float() - logits.float().logsumexp(-1)
            (-(logps - logps.detach()).exp() * factors / total).sum().backward()
            means.append(logps.detach().mean())
        return float(torch.stack(means).mean()), optimizer.step(0)[0]

    return {"rollout": rollout, "update": update}


def measure(side: Side, device: torch.device, budget_s: float) -> dict[str, Any]:
    """Time a side's phases; the first update is done on untouched weights and compared."""
    logp, norm = side["update"]()
    row: dict[str, Any] = {"mean_logp": logp, "grad_norm": norm}
    for phase, way in side.items():
        way()
        (timing,) = time_ways({phase: way}, device, repeats=10, budget_s=budget_s / len(side)).values()
        row[f"{phase}_s"] = timing.median_us / 1e6
        row[f"{phase}_peak_gib"] = round(timing.peak_bytes / 2**30, 3)
    return row


def run(size: Size, device: torch.device, budget_s: float) -> list[dict[str, Any]]:
    """Measure all sides one after the other; one that computes something else has a reason in place of figures."""
    peer = f"transformers {best_attention(device)}"
    sides: dict[str, Callable[[MedMO], Side]] = {
        "ours": lambda model: our_side(model, size),
        peer: lambda model: their_side(model, size, best_attention(device)),
        "ours, again": lambda model: our_side(model, size),
    }
    found: list[dict[str, Any]] = []
    for name, build in sides.items():
        if name == peer and importlib.util.find_spec("transformers") is None:
            found.append({"way": name, "absent": "transformers not installed"})
            continue
        print(name, flush=True)
        torch.manual_seed(0)
        try:
            side = build(MedMO.from_config(size.preset, device=device, dtype=size.dtype))
            found.append({"way": name, **measure(side, device, budget_s / len(sides))})
        except torch.OutOfMemoryError as error:
            found.append({"way": name, "absent": f"out of memory: {str(error).splitlines()[0]}"})
        side = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    judge(found, size)
    return found


def judge(found: list[dict[str, Any]], size: Size) -> None:
    """Take the figures from a way whose update is another; add the time of the whole step to the others."""
    ours = next((row for row in found if "grad_norm" in row), {})
    for index, row in enumerate(found):
        if "absent" in row:
            continue
        apart = max(abs(row[name] / ours[name] - 1) for name in ("mean_logp", "grad_norm"))
        if not apart <= TOLERANCE[size.dtype]:
            found[index] = {"way": row["way"], "wrong": f"log-probability or gradient norm is off by {apart:.1e}"}
            continue
        row["step_s"] = sum(row.get(f"{phase}_s", ours[f"{phase}_s"]) for phase in PHASES)
        row["ratio"] = row["step_s"] / ours["step_s"]


def markdown(result: dict[str, Any]) -> str:
    """Return the results as a page."""
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in result["versions"].items())
    lines = [
        f"# A GRPO step on {result['device']}",
        "",
        f"{result['date']}, commit {result['commit']}. {versions}.",
        f"{result['what']}. Medians in seconds; the reward is the same function on both sides.",
        "",
        "| way | rollout | reward | update | step | ratio | peak GiB of rollout, update |",
        "|---" * 7 + "|",
    ]
    for row in result["steps"]:
        if "step_s" not in row:
            lines.append(f"| {row['way']} | {row.get('absent') or 'WRONG: ' + row['wrong']} |" + " |" * 5)
            continue
        seconds = " | ".join(f"{row[f'{n}_s']:.4g}" if f"{n}_s" in row else "" for n in (*PHASES, "step"))
        peaks = f"{row['rollout_peak_gib']}, {row['update_peak_gib']}"
        lines.append(f"| {row['way']} | {seconds} | {row['ratio']:.2f} | {peaks} |")
    return "\n".join([*lines, "", "research use only", ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns 1 where the peer's update is not ours, or ours could not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for grpo_step.json and grpo_step.md")
    parser.add_argument("--preset", help="another model, with random weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument("--prompts", type=int, help="instead of the size's own, where memory is short")
    parser.add_argument("--budget-s", type=float, default=300.0, help="seconds of timing, building not included")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    size = SIZES[device.type]
    size = replace(size, preset=arguments.preset or size.preset, prompts=arguments.prompts or size.prompts)
    result = header(device)
    side, dtype = 16 * size.side, str(size.dtype).removeprefix("torch.")
    result["what"] = (
        f"{size.preset}, {size.prompts} prompts with an image of {side} x {side} px, {size.generations} completions of "
        f"{size.new_tokens} tokens each, {dtype}, {size.kind}, all blocks computed again in the update"
    )
    result["steps"] = run(size, device, arguments.budget_s)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "grpo_step.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = markdown(result)
    (arguments.out / "grpo_step.md").write_text(page, encoding="utf-8")
    print(page)
    bad = [row for row in result["steps"] if "wrong" in row or (row["way"].startswith("ours") and "absent" in row)]
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())

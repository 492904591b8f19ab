"""Sampling many short answers to large images: prompts run once per group, and rows that are refilled, in seconds.

    python -m benchmarks.bench_rollout                    # status 1 where the requirement or the agreement fails
    python -m benchmarks.bench_rollout --out results      # also writes rollout.json and rollout.md

Both comparisons are of the same random model of small widths on the CPU with itself, interleaved, so that a busy minute
hits all ways; medians count.

- Shared prefill: 8 answers of 40 tokens to one image of 1280 x 1280 px (1,600 visual tokens). The other ways run the
  prompt in each row, with the image encoded for each row, or once for all. Greedy answers and log-probabilities of all
  ways are compared in float64 beforehand. Vision: one narrow block, text: 8 layers, so that the decoder outweighs the
  encoder, as in the large models.
- Refill: 192 answers to 24 prompts of 80 tokens of text, each token the last with odds of 1 to 20, at most 128. 64 rows
  are refilled as answers end, or 8 prompts are sampled after the other 8, with rows dropped as answers end. Both ways
  give the same answers.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from medmo_core.data.packing import pack
from medmo_core.data.process import Item
from medmo_core.data.record import Sample
from medmo_core.models import Generation, MedMO
from medmo_core.modules import KVCache
from medmo_recipes.training.config import Rollout
from medmo_recipes.training.engine import InPlaceEngine, Request

from . import bench_shared_prefix
from .bench_kernels import header
from .bench_shared_prefix import VISION
from .timing import Timing, time_ways

TEXT = {"num_hidden_layers": 8}
ANSWERS, LENGTH = 8, 40
REQUIRED = 3.0
"""How many times less time than running the prompt in each row."""
TOLERANCE = 1e-9
"""Largest difference of a log-probability, in float64."""
UNEVEN = Rollout(num_generations=8, max_new_tokens=128, rows_per_pass=64)
PROMPTS, PROMPT_LENGTH = 24, 80
STOP_SHARE = 20

Ways = dict[str, Callable[[], list[list[Generation]]]]


def make_model(dtype: torch.dtype = torch.float32) -> MedMO:
    """Return the random model, always the same."""
    torch.manual_seed(0)
    return MedMO.from_config("tiny", vision=VISION, text=TEXT, dtype=dtype).eval()


def image_prompt(model: MedMO) -> Item:
    """Return the prompt of `bench_shared_prefix`, about one large image."""
    return bench_shared_prefix.make_items(model, 1, 0)[0]


def text_prompt(number: int) -> Item:
    """Return a prompt of random text."""
    ids = np.random.default_rng(number).integers(0, 1000, PROMPT_LENGTH)
    positions = np.broadcast_to(np.arange(PROMPT_LENGTH), (3, PROMPT_LENGTH))
    return Item(ids, None, positions, {}, {}, Sample(id=f"prompt {number}", task="vqa"), visual_end=0)


def apart(item: Item) -> Item:
    """Return the item with an image of its own: it is not known to be the same."""
    return replace(item, patches={name: rows.copy() for name, rows in item.patches.items()})


def prefill_ways(model: MedMO, item: Item, temperature: float) -> Ways:
    """Return the ways to sample ANSWERS answers to one prompt, the shared one first."""
    batches = {
        "prompt once": (pack([item]), ANSWERS),
        "prompt in each row": (pack([apart(item) for _ in range(ANSWERS)]), 1),
        "prompt in each row, image encoded once": (pack([item] * ANSWERS), 1),
    }
    settings: dict[str, Any] = {"max_new_tokens": LENGTH, "temperature": temperature, "stop_token_ids": ()}
    return {
        name: lambda batch=batch, each=each: model.generate(batch, num_generations=each, **settings)
        for name, (batch, each) in batches.items()
    }


def largest_difference(ways: Ways) -> float:
    """Return the largest difference of a log-probability between the ways; infinite where a token differs."""
    first, *others = ([g for group in way() for g in group] for way in ways.values())
    pairs = [pair for other in others for pair in zip(first, other, strict=True)]
    if any(one.tokens != two.tokens for one, two in pairs):
        return float("inf")
    return max(abs(a - b) for one, two in pairs for a, b in zip(one.logps, two.logps, strict=True))


def refill_ways(model: MedMO) -> Ways:
    """Return the ways to sample answers of uneven lengths to many prompts, the refilled one first."""
    engine = InPlaceEngine(model, range(0, model.config.text.vocab_size, STOP_SHARE))
    requests = [Request(f"prompt {number}", text_prompt(number)) for number in range(PROMPTS)]
    per_pass = UNEVEN.rows_per_pass // UNEVEN.num_generations
    chunks = [requests[start : start + per_pass] for start in range(0, PROMPTS, per_pass)]
    return {
        "rows refilled": lambda: engine.sample(requests, UNEVEN, seed=0),
        "fixed batches": lambda: [group for chunk in chunks for group in engine.sample(chunk, UNEVEN, seed=0)],
    }


@contextmanager
def count_steps() -> Iterator[list[int]]:
    """Collect the number of rows of every step of a decoder."""
    rows: list[int] = []
    advance = KVCache.advance

    def counting(self: KVCache) -> None:
        rows.append(self.own[0][0].shape[0])
        advance(self)

    with patch.object(KVCache, "advance", counting):
        yield rows


def timed(ways: Ways, repeats: int, budget_s: float) -> dict[str, dict[str, Any]]:
    """Time the ways in turn; return seconds, and the ratio to the first way."""
    times = time_ways(ways, torch.device("cpu"), repeats=repeats, budget_s=budget_s)
    ours = next(iter(times.values())).median_us

    def numbers(timing: Timing) -> dict[str, Any]:
        seconds = {f"{name}_s": round(getattr(timing, f"{name}_us") / 1e6, 4) for name in ("median", "p20", "p80")}
        return {**seconds, "repeats": timing.repeats, "ratio": round(timing.median_us / ours, 3)}

    return {name: numbers(timing) for name, timing in times.items()}


def compare_prefill(repeats: int, budget_s: float) -> dict[str, Any]:
    """Time shared against repeated prefill, after their answers have been compared."""
    exact = make_model(torch.float64)
    difference = largest_difference(prefill_ways(exact, image_prompt(exact), 0.0))
    model = make_model()
    item = image_prompt(model)
    return {
        "what": f"{ANSWERS} answers of {LENGTH} tokens to one prompt of {len(item.input_ids):,} tokens",
        "ways": timed(prefill_ways(model, item, 1.0), repeats, budget_s),
        "difference": difference,
    }


def compare_refill(repeats: int, budget_s: float) -> dict[str, Any]:
    """Time refilled rows against fixed batches, whose answers must be the same."""
    model = make_model()
    ways = refill_ways(model)
    steps, answers = {}, {}
    for name, way in ways.items():
        with count_steps() as rows:
            answers[name] = [g for group in way() for g in group]
        steps[name] = {"steps": len(rows), "rows_per_step": round(sum(rows) / len(rows), 1)}
    one, two = answers.values()
    lengths = [len(generation.logps) for generation in one]
    ways_timed = timed(ways, repeats, budget_s)
    return {
        "what": f"{len(lengths)} answers of 1 to {max(lengths)} tokens, {sum(lengths) / len(lengths):.1f} on average",
        "ways": {name: ways_timed[name] | steps[name] for name in ways},
        "same": sum(a.tokens == b.tokens for a, b in zip(one, two, strict=True)) / len(lengths),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the results as a page."""
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in result["versions"].items())
    lines = [
        f"# Rollouts on {result['device']}, {result['threads']} thread(s)",
        "",
        f"{result['date']}, commit {result['commit']}. {versions}.",
    ]
    for part in ("prefill", "refill"):
        lines += ["", f"{result[part]['what']}:", "", "| way | median s | 20 % | 80 % | ratio | steps | rows a step |"]
        lines.append("|---" * 7 + "|")
        for name, row in result[part]["ways"].items():
            figures = " | ".join(f"{row[key]:.3f}" for key in ("median_s", "p20_s", "p80_s"))
            lines.append(f"| {name} | {figures} | {row['ratio']:.2f} | {row.get('steps', '')} "
                         f"| {row.get('rows_per_step', '')} |")  # fmt: skip
    lines += [
        "",
        f"Required: {REQUIRED:g}x less time than a prompt in each row; log-probabilities within {TOLERANCE:.0e} in "
        f"float64 (found {result['prefill']['difference']:.0e}); the same answers refilled or not (found "
        f"{result['refill']['same']:.1%}; single precision may turn one in a thousand): "
        f"{'passed' if is_as_required(result) else 'FAILED'}",
        "",
    ]
    return "\n".join(lines)


def is_as_required(result: dict[str, Any]) -> bool:
    """Whether shared prefill is fast enough and all ways agree."""
    fast = result["prefill"]["ways"]["prompt in each row"]["ratio"] >= REQUIRED
    return fast and result["prefill"]["difference"] <= TOLERANCE and result["refill"]["same"] >= 0.99


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; return 1 where something is not as required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for rollout.json and rollout.md")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds at the most, three at the least")
    parser.add_argument("--budget-s", type=float, default=40.0, help="no new round of a part after so many seconds")
    arguments = parser.parse_args(argv)
    result = header(torch.device("cpu")) | {
        "threads": torch.get_num_threads(),
        "prefill": compare_prefill(arguments.repeats, arguments.budget_s),
        "refill": compare_refill(arguments.repeats, arguments.budget_s),
    }
    page = markdown(result)
    print(page)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "rollout.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (arguments.out / "rollout.md").write_text(page, encoding="utf-8")
    return 0 if is_as_required(result) else 1


if __name__ == "__main__":
    sys.exit(main())

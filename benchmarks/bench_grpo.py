"""The update of GRPO: a group as one prompt with branches beside rows that repeat the prompt, in seconds.

    python -m benchmarks.bench_grpo --out results     # status 1 where the requirement or the agreement fails
    python -m benchmarks.bench_grpo --budget-s 0      # quicker; nothing is written

One policy-gradient loss forward and backward through a random model of small widths, 8 short answers to one prompt with
an image of 1280 x 1280 px (1,600 visual tokens); the shape and the widths are those of `bench_shared_prefix`. Rows that
repeat the prompt are packed too, so neither way pads. Runs are interleaved; medians count. Losses and gradients of all
ways (off policy, with clipped ratios and a KL term) are compared in float64 beforehand. `bench_grpo_step` times whole
steps, rollouts included.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmo_core.models import MedMO
from medmo_recipes.training.rollout import Completion, PolicyBatch, pack_completions

from .bench_kernels import header
from .bench_shared_prefix import SIDE, TOLERANCE, VISION, make_items
from .timing import time_ways

GROUP, LENGTH = 8, 40
"""Answers, and tokens of each."""
REQUIRED_TIME = 3.0
"""How many times less time than rows that repeat the prompt."""
SHARED, APART = "shared prompt", "rows that repeat the prompt"


def layouts(model: MedMO, group: int, length: int) -> dict[str, PolicyBatch]:
    """Return the ways to lay a group out, the shared one first."""
    items = make_items(model, group, length)
    own_images = [replace(item, patches={n: rows.copy() for n, rows in item.patches.items()}) for item in items]
    advantages = torch.linspace(-1.0, 1.3, group).tolist()

    def packed(documents: Sequence[Any], share: bool) -> PolicyBatch:
        rows = zip(documents, advantages, strict=True)
        weight = 1.0 / (group * length)
        return pack_completions([Completion(d, a, weight, [-1.0] * length) for d, a in rows], share_prefixes=share)

    return {
        SHARED: packed(items, True),
        APART: packed(own_images, False),
        f"{APART}, the image encoded once": packed(items, False),
    }


def update(model: MedMO, batch: PolicyBatch, **settings: Any) -> Tensor:
    """Run the loss forward and backward."""
    model.zero_grad()
    policy = model.policy_loss(batch.batch, batch.advantages, batch.token_weights, **settings)
    policy.total.backward()
    return policy.total.detach()


def largest_difference(batches: dict[str, PolicyBatch]) -> float:
    """Return the largest relative difference between the ways, over the loss and all gradients, in float64."""
    torch.manual_seed(0)
    model = MedMO.from_config("tiny", vision=VISION, dtype=torch.float64)
    with torch.no_grad():  # off policy, so that ratios are clipped
        now = model.token_logprobs(batches[SHARED].batch)
    old = now + torch.linspace(-0.4, 0.4, len(now), dtype=torch.float64)
    found = []
    for batch in batches.values():
        value = update(model, batch, old_logps=old, ref_logps=now - 0.1, beta=0.05)
        found.append({"loss": value, **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}})
    first, *others = found
    assert len(first) == 1 + len(list(model.parameters()))
    return max(float((other[name] - value).norm() / value.norm()) for other in others for name, value in first.items())


def compare(group: int, length: int, repeats: int, budget_s: float) -> dict[str, Any]:
    """Time all ways and check that they agree; prints and returns what came out."""
    torch.manual_seed(0)
    model = MedMO.from_config("tiny", vision=VISION)
    batches = layouts(model, group, length)
    worst = largest_difference(batches)
    ways: dict[str, Callable[[], object]] = {n: lambda b=b: update(model, b) for n, b in batches.items()}
    for way in ways.values():
        way()
    times = time_ways(ways, torch.device("cpu"), repeats=repeats, budget_s=budget_s)
    shared_us = times[SHARED].median_us
    print(f"{group} answers of {length} tokens to one image of {SIDE * SIDE // 4:,} tokens")
    rows = []
    for name, batch in batches.items():
        median_s, ratio = times[name].median_us / 1e6, times[name].median_us / shared_us
        rows.append({"way": name, "tokens": batch.batch.num_tokens, "median_s": median_s, "ratio": ratio})
        print(f"  {name:52} {batch.batch.num_tokens:6,} tokens {median_s:7.3f} s  {ratio:.2f}x the time")
    ratio = times[APART].median_us / shared_us
    passed = ratio >= REQUIRED_TIME and worst <= TOLERANCE
    agreement = f"loss and gradients agree to {worst:.0e} in float64 (required {TOLERANCE:.0e})"
    print(f"  required {REQUIRED_TIME:g}x less time than {APART}: {ratio:.2f}x; {agreement}: "
          f"{'passed' if passed else 'FAILED'}", flush=True)  # fmt: skip
    return {"answers": group, "length": length, "image_tokens": SIDE * SIDE // 4, "ways": rows,
            "required_ratio": REQUIRED_TIME, "ratio": ratio, "difference": worst, "passed": passed}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; returns 1 where it is not as required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for grpo.json")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds at the most, three at the least")
    parser.add_argument("--budget-s", type=float, default=60.0, help="no new round after so many seconds")
    arguments = parser.parse_args(argv)
    print(f"policy-gradient loss forward and backward on the CPU, {torch.get_num_threads()} thread(s)")
    result = compare(GROUP, LENGTH, arguments.repeats, arguments.budget_s)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**header(torch.device("cpu")), "update": result}, indent=1) + "\n"
        (arguments.out / "grpo.json").write_text(text, encoding="utf-8")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())

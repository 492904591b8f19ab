"""Many answers to one image in training: one prompt with branches beside separate rows, in tokens and in seconds.

    python -m benchmarks.bench_shared_prefix                  # status 1 where a requirement or the agreement fails
    python -m benchmarks.bench_shared_prefix --budget-s 0     # quicker

One training loss forward and backward through a random model of small widths, about one image of 1280 x 1280 px (1,600
visual tokens). Separate rows are packed too, so neither way pads; each row encodes its image and computes its prompt
again. Runs are interleaved, so that a busy minute hits all ways; medians count. The losses and the gradients of all
ways are compared in float64 beforehand.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from medmo_core.batch import IGNORE_INDEX, Batch, mrope_position_ids
from medmo_core.data.packing import pack
from medmo_core.data.process import Item
from medmo_core.data.record import Sample
from medmo_core.models import MedMO

from .timing import time_ways

VISION = {"depth": 1, "hidden_size": 64, "intermediate_size": 256, "deepstack_visual_indexes": (0,)}
"""The preset "tiny" with one narrow vision block: attention over 6,400 patches in its own four would hide the decoder,
which costs more than the encoder in the large models."""
SIDE = 80
"""Patches along each side of the image: 1280 / 16."""
TEXT_BEFORE, TEXT_AFTER = 4, 16
"""Tokens of the prompt around the image."""
CASES = ((5, 60), (8, 50))
"""Answers, and tokens of each."""
REQUIRED_TOKENS, REQUIRED_TIME = 4.0, 3.5
"""How many times fewer tokens, and less time, than separate rows."""
TOLERANCE = 1e-9
"""Largest relative difference of the loss or of a parameter's gradient, in float64."""


def make_items(model: MedMO, answers: int, length: int) -> list[Item]:
    """Return documents that hold the same image and prompt, each with an answer of its own."""
    rng, config = np.random.default_rng(0), model.config
    text_ids = config.text.vocab_size // 2
    visual = [config.image_token_id] * (SIDE * SIDE // 4)
    before, after = (rng.integers(0, text_ids, count).tolist() for count in (TEXT_BEFORE, TEXT_AFTER))
    prompt = [*before, config.vision_start_token_id, *visual, config.vision_end_token_id, *after]
    patches = rng.integers(0, 256, (SIDE * SIDE, 768), dtype=np.uint8)
    grid = np.array([[1, SIDE, SIDE]])
    items = []
    for _ in range(answers):
        answer = rng.integers(0, text_ids, length).tolist()
        ids = torch.tensor([*prompt, *answer])
        positions = mrope_position_ids(
            ids,
            torch.from_numpy(grid),
            merge_size=2,
            image_token_id=config.image_token_id,
            video_token_id=config.video_token_id,
        )
        items.append(
            Item(
                input_ids=ids.numpy(),
                labels=np.array([IGNORE_INDEX] * len(prompt) + answer),
                position_ids=positions.numpy(),
                patches={"qwen3_vl": patches},
                image_grid_thw={"qwen3_vl": grid},
                sample=Sample(id="image", task="vqa"),
                visual_end=TEXT_BEFORE + 1 + len(visual),
            )
        )
    return items


def packings(items: Sequence[Item]) -> dict[str, Batch]:
    """Return the ways to lay the items out, the shared one first."""
    apart = [replace(item, patches={name: rows.copy() for name, rows in item.patches.items()}) for item in items]
    return {
        "shared prompt": pack(items, share_prefixes=True),
        "separate rows": pack(apart),
        "separate rows with the image encoded once": pack(items),
    }


def step(model: MedMO, batch: Batch) -> Tensor:
    """Run the training loss forward and backward."""
    model.zero_grad()
    loss = model.loss(batch)
    loss.backward()
    return loss.detach()


def largest_difference(batches: dict[str, Batch]) -> float:
    """Return the largest relative difference between the ways, over the loss and all gradients, in float64."""
    torch.manual_seed(0)
    model = MedMO.from_config("tiny", vision=VISION, dtype=torch.float64)
    found = []
    for batch in batches.values():
        loss = step(model, batch)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert len(gradients) == len(list(model.parameters()))
        found.append({"loss": loss, **gradients})
    first, *others = found
    return max(float((other[name] - value).norm() / value.norm()) for other in others for name, value in first.items())


def compare(answers: int, length: int, repeats: int, budget_s: float) -> bool:
    """Print tokens, seconds and ratios of one case; return whether it is as required."""
    torch.manual_seed(0)
    model = MedMO.from_config("tiny", vision=VISION)
    batches = packings(make_items(model, answers, length))
    apart = largest_difference(batches)
    ways: dict[str, Callable[[], object]] = {name: lambda b=batch: step(model, b) for name, batch in batches.items()}
    times = time_ways(ways, torch.device("cpu"), repeats=repeats, budget_s=budget_s)
    shared = batches["shared prompt"].num_tokens
    shared_us = times["shared prompt"].median_us
    print(f"{answers} answers of {length} tokens to one image of {SIDE * SIDE // 4:,} tokens")
    for name, batch in batches.items():
        ratios = f"{batch.num_tokens / shared:.2f}x the tokens, {times[name].median_us / shared_us:.2f}x the time"
        print(f"  {name:42} {batch.num_tokens:6,} tokens {times[name].median_us / 1e6:7.3f} s  {ratios}")
    tokens_ratio = batches["separate rows"].num_tokens / shared
    time_ratio = times["separate rows"].median_us / shared_us
    good = tokens_ratio >= REQUIRED_TOKENS and time_ratio >= REQUIRED_TIME and apart <= TOLERANCE
    print(f"  required {REQUIRED_TOKENS:g}x fewer tokens and {REQUIRED_TIME:g}x less time than separate rows: "
          f"{tokens_ratio:.2f}x and {time_ratio:.2f}x; loss and gradients agree to {apart:.0e} in float64 "
          f"(required {TOLERANCE:.0e}): {'passed' if good else 'FAILED'}", flush=True)  # fmt: skip
    return good


def main(argv: Sequence[str] | None = None) -> int:
    """Compare all cases; return 1 where one is not as required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds at the most, three at the least")
    parser.add_argument("--budget-s", type=float, default=45.0, help="no new round of a case after so many seconds")
    arguments = parser.parse_args(argv)
    print(f"training loss forward and backward on the CPU, {torch.get_num_threads()} thread(s)")
    return 0 if all([compare(*case, arguments.repeats, arguments.budget_s) for case in CASES]) else 1


if __name__ == "__main__":
    sys.exit(main())

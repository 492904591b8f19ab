"""Calls of any size share few binaries: a training step never waits for the compiler because a length is new.

Triton compiles a kernel anew where an integer argument is 1, or becomes a multiple of 16, unless the kernel says that
nothing is gained by it. Nothing is compiled here: launches are counted by the keys that they would be compiled for.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
MOST = 2
"""Binaries of a kernel for all calls of one class of shapes: the widths of heads are no sizes."""

PROGRAM = """
import json, random
import torch
from medmo_kernels.attention.cases import Size as Packing
from medmo_kernels.decode_attention.cases import Size as Step
from medmo_kernels.patch_embed.cases import Size as Patches
from tools.compile_kernels.launches import binaries
from tools.compile_kernels.pretended import specs

draw = random.Random(0)
ODD = (1, 3, 7, 16, 17, 48, 64, 255, 256)  # 1, multiples of 16, and neither; either side of every limit in the code

def count(most=300):
    return draw.choice((*ODD, draw.randint(1, most)))

def segments():
    return [count() for _ in range(draw.choice((1, 2, 3, 8, 16, 17)))]

def text(prompts):
    lengths = segments()
    return Packing(lengths, 4, 2, 128, True, [-1] + [0] * (len(lengths) - 1) if prompts else None)

def step(rows_per_prompt):
    prompts, columns = draw.choice((1, 3, 8, 16)), count()
    of = [prompt for prompt in range(prompts) for _ in range(rows_per_prompt or 1)]
    lengths = [count() for _ in range(prompts)] if rows_per_prompt else ()
    return Step([(0, columns)] * len(of), columns, (8, 2, 128), lengths, of)

def problems():
    return [(count(100), count(100)) for _ in range(draw.choice((1, 3, 16, 17)))]

CALLS = {
    "attention": {
        "text": lambda: text(False),
        "text, shared prompts": lambda: text(True),
        "vision 8B": lambda: Packing(segments(), 2, 2, 72, False, rotary=True),
        "vision 4B": lambda: Packing(segments(), 2, 2, 64, False, rotary=True),
    },
    "box_match": {"giou": lambda: (problems(), "giou")},
    "box_reward": {"medmo": lambda: (problems(), "medmo", {})},
    "decode_attention": {
        "no prompt": lambda: step(0), "a row a prompt": lambda: step(1), "8 rows a prompt": lambda: step(8)},
    "giou": {"pairs": count},
    "box_terms": {"pairs": count},
    "pairwise_giou": {
        "one problem": lambda: (count(), count()), "batch": lambda: (draw.choice((1, 2, 16)), count(), count())},
    "pairwise_box_terms": {"ragged": problems},
    "patch_embed": {"still": lambda: Patches(4 * count(), 64, side=48), "no table": lambda: Patches(4 * count(), 64)},
    "projector": {
        "main": lambda: (count(600), 64, 64, 16, (False,)), "tower": lambda: (count(600), 64, 64, 16, (False, True))},
    "qk_norm_rope": {"text": lambda: (draw.choice((count(), 4101)), 2, 1, 128, 1.0)},
    "qk_norm_rope_": {"text": lambda: (count(), 8, 2, 128, 1.0)},
    "qk_norm_rope_cache_": {"text": lambda: ((count(), 8, 2, 128, 1.0), (0,), count())},
}
found = {}
with_kernels = {spec.name: spec for spec in specs() if spec.compile.sizes}
assert set(CALLS) == set(with_kernels), set(CALLS) ^ set(with_kernels)
for name, kinds in CALLS.items():
    for kind, size in kinds.items():
        keys = binaries(with_kernels[name], [size() for _ in range(60)], torch.bfloat16, 90)
        assert keys, (name, kind)
        found[f"{name}, {kind}"] = {kernel: len(of_kernel) for kernel, of_kernel in keys.items()}
print(json.dumps(found))
"""


def test_sixty_calls_need_at_most_two_binaries_of_a_kernel() -> None:
    # Another process: here Triton was imported for the interpreter, and its compiler is out of reach.
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    too_many = {(call, kernel): n for call, kernels in found.items() for kernel, n in kernels.items() if n > MOST}
    assert too_many == {}

"""Hold the memory estimate of `--dry-run` against what torch counts in a training step.

    python -m benchmarks.bench_memory              # small and 4B-wide models, every way of recomputing, what is frozen
    python -m benchmarks.bench_memory --whole      # also all layers of 4B and 8B, on tensors without memory: minutes

A step is its passes, forward and backward, with the optimiser's state there, and the optimiser's update. Peaks come
from torch's MemTracker; where parts are frozen, which it does not take, from the profiler's allocations in a real step
(where both work they agree to the byte), and so where the model is sharded: over processes that are only said to be
there. Large models run on fake tensors, which have sizes and no memory. All of this is the CPU's code; what CUDA runs
is counted from the same lists but cannot be measured here.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from medmo_core.batch import IGNORE_INDEX, Batch
from medmo_core.inference.load import DTYPES
from medmo_core.models import PRESETS, MedMO
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import Lora, RunConfig
from medmo_recipes.training.distributed.sharding import shard
from medmo_recipes.training.distributed.shards import local_part
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.model.trainable import choose_trainable, make_trainable
from medmo_recipes.training.optim.adam import Hyper
from medmo_recipes.training.optim.optimizer import Optimizer
from medmo_recipes.training.sizing.activations import BatchShape
from medmo_recipes.training.sizing.dry_run import estimate_memory
from medmo_recipes.training.sizing.memory import Memory, estimate

FEW_LAYERS: dict[str, Any] = {
    "text": {"num_hidden_layers": 2},
    "vision": {"depth": 2, "deepstack_visual_indexes": (0,)},
    "vocab_size": 8192,
    "image_token_id": 8000,
}
"""The widths of a large model with few layers and words."""


@dataclass(frozen=True)
class Case:
    """One model, batch and way of training."""

    name: str
    preset: str
    dtype: str = "float32"
    recompute: str = "nothing"
    documents: int = 4
    tokens: int = 128
    """Of each document; a quarter of them are learned."""
    grid: tuple[int, int] = (12, 12)
    """Patches of the image of each document."""
    sizes: dict[str, Any] = field(default_factory=dict)
    """In place of the preset's."""
    kind: str = "adamw"
    passes: int = 1
    trainable: str = "all"
    lora: Lora = field(default_factory=Lora)
    processes: int = 1
    """Over which the model is sharded."""
    fake: bool = False

    def config(self) -> RunConfig:
        """Return the settings as a run has them."""
        recompute = {"recompute_text": self.recompute, "recompute_vision": self.recompute}
        model = {"dtype": self.dtype, "trainable": (self.trainable,), **recompute}
        parallel = {"shard": self.processes > 1}
        return RunConfig(stage="align").change(
            model=model, optim={"kind": self.kind}, lora=self.lora, parallel=parallel
        )

    def model(self) -> tuple[MedMO, Any]:
        """Return the model, ready to train, and the mode in which its tensors are fake."""
        mode = FakeTensorMode(allow_non_fake_inputs=True) if self.fake else nullcontext()
        with mode:
            sizes = PRESETS[self.preset].override(**self.sizes)
            model = MedMO.from_config(sizes, device="cpu", dtype=DTYPES[self.dtype]).train()
        make_trainable(model, [self.trainable], self.lora)
        config = self.config().model
        model.checkpoint_activations(text=config.recompute_text, vision=config.recompute_vision)
        return model, mode

    def batch(self, model: MedMO) -> Batch:
        """Return equal documents of one image each."""
        generator = torch.Generator().manual_seed(0)
        visual = self.grid[0] * self.grid[1] // model.merge_size**2
        ids = torch.randint(0, 100, (self.documents, self.tokens), generator=generator)
        ids[:, 1 : 1 + visual] = model.config.image_token_id
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[:, -(self.tokens // 4) :] = 5
        patches = torch.randint(0, 256, (self.documents * self.grid[0] * self.grid[1], 768), generator=generator)
        return Batch(
            input_ids=ids.flatten(),
            labels=labels.flatten(),
            position_ids=torch.arange(self.tokens).repeat(3, self.documents),
            cu_seqlens=torch.arange(0, ids.numel() + 1, self.tokens, dtype=torch.int32),
            patches={"qwen3_vl": patches.to(torch.uint8)},
            image_grid_thw={"qwen3_vl": torch.tensor([[1, *self.grid]] * self.documents)},
        )


def compare(case: Case) -> tuple[Memory, int]:
    """Return the estimate, and the peak of a step as torch counts it, in bytes."""
    model, mode = case.model()
    config, batch = case.config(), case.batch(model)
    shape = BatchShape.of(batch)
    estimated = estimate(model, config, shape, processes=case.processes, passes=case.passes, device="cpu")
    with said_to_be(case.processes) as world:
        if case.processes > 1:
            shard(model, config.parallel, world)
        optimizer = Optimizer(model, config.optim, 10)
        optimizer.allocate()
        is_plain = case.processes == 1 and all(p.requires_grad for p in model.parameters())
        peak = tracked_peak if is_plain else profiled_peak
        return estimated, peak(model, optimizer, batch, case.passes, mode)


@contextmanager
def said_to_be(processes: int) -> Iterator[World]:
    """Stand for the first of many processes: exchanges take their memory and bring nothing."""
    if processes > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield World(rank=0, size=processes, device=torch.device("cpu"))
    finally:
        if processes > 1:
            dist.destroy_process_group()


def tracked_peak(model: MedMO, optimizer: Optimizer, batch: Batch, passes: int, mode: Any) -> int:
    """Return the most bytes at one time of a step, by MemTracker."""
    tracker = MemTracker()
    tracker.track_external(model, *optimizer.state_tensors().values())
    with tracker:
        for _ in range(passes):
            model.token_losses(batch).total.backward()
            tracker.reset_mod_stats()
        peaks = [_peak(tracker)]
    with mode, tracker, torch.no_grad():  # in this order: the tracker must see what the mode makes
        _update(optimizer)
        peaks.append(_peak(tracker))
    return max(peaks)


def _peak(tracker: MemTracker) -> int:
    """Return the most bytes since the tracker was entered."""
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return snapshot["Total"]


def profiled_peak(model: MedMO, optimizer: Optimizer, batch: Batch, passes: int, mode: Any) -> int:
    """Return the most bytes at one time of a step, by the allocations that the profiler saw."""
    tensors: list[Tensor] = [local_part(t) for t in (*model.parameters(), *optimizer.state_tensors().values())]
    before = sum(t.numel() * t.element_size() for t in tensors)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen, torch.no_grad():
        for _ in range(passes):
            with torch.enable_grad():
                model.token_losses(batch).total.backward()
        _update(optimizer)
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()  # type: ignore[attr-defined]
        peak = max(peak, now)
    return before + peak


def _update(optimizer: Optimizer) -> None:
    """Do what a step does after the norm, which fake gradients do not have."""
    hyper = Hyper(count=1, betas=(0.9, 0.999), eps=1e-8, clip=0.5, seed=0)
    optimizer._rule.update(list(optimizer._parts.values()), 1e-3, hyper)


WIDE: dict[str, Any] = {"preset": "medmo-4b", "dtype": "bfloat16", "tokens": 1024, "grid": (48, 48),
                        "sizes": FEW_LAYERS, "fake": True}  # fmt: skip
UNTIED: dict[str, Any] = WIDE | {"sizes": FEW_LAYERS | {"tie_word_embeddings": False}}
SHAPES: dict[str, dict[str, Any]] = {
    "debug": {"preset": "debug", "tokens": 64, "grid": (4, 4)},
    "tiny": {"preset": "tiny"},
    "4B widths": WIDE | {"kind": "adamw_bf16"},
}
PARTS: dict[str, dict[str, Any]] = {
    "encoder": {"trainable": "encoder"},
    "projector": {"trainable": "projector"},
    "decoder": {"trainable": "decoder"},
    "LoRA": {"lora": Lora(rank=8)},
    "DoRA everywhere": {"lora": Lora(rank=8, dora=True, targets=("encoder", "projector", "decoder"))},
}
SMALL = [
    Case(f"{name}, {recompute}", recompute=recompute, **settings)
    for name, settings in SHAPES.items()
    for recompute in ("nothing", "all", "selected")
]
FROZEN = [
    Case(f"tiny, {name}, {recompute}", "tiny", recompute=recompute, **settings)
    for name, settings in PARTS.items()
    for recompute in ("nothing", "all")
]
WIDER: dict[str, Any] = {"text": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
                                  "num_key_value_heads": 4, "num_hidden_layers": 6},
                         "vocab_size": 8192, "image_token_id": 8000, "tie_word_embeddings": False}  # fmt: skip
SHARES: dict[str, dict[str, Any]] = {
    "all": {"recompute": "all"},
    "nothing, two passes": {"passes": 2},
    "frozen tower": {"trainable": "decoder", "recompute": "all"},
}
SHARDED = [
    Case(f"sharded over 8, {name}", "tiny", sizes=WIDER, documents=2, tokens=64, grid=(8, 8), processes=8, **settings)
    for name, settings in SHARES.items()
]
OTHER = [
    Case("debug, two passes, 8-bit", "debug", dtype="bfloat16", kind="adamw_8bit", passes=2, tokens=64, grid=(4, 4)),
    Case("4B widths, untied, two passes, 8-bit", **UNTIED, kind="adamw_8bit", passes=2, recompute="all"),
]
WHOLE = [
    Case(f"{preset}, {recompute}", preset, dtype="bfloat16", recompute=recompute, kind="adamw_bf16", documents=8,
         tokens=1024, grid=(48, 48), fake=True)
    for preset in ("medmo-4b", "medmo-8b")
    for recompute in ("all", "nothing")
]  # fmt: skip

LEAN = {"parallel": {"shard": False}, "optim": {"kind": "adamw_bf16"}}
ON_ONE_GPU: dict[str, tuple[str, int, dict[str, Any]]] = {
    "8B, all weights, on 141 GB": ("medmo_8b_align", 141, LEAN),
    "4B, all weights, on 80 GB": ("medmo_4b_align", 80, LEAN),
    "4B, adapters, on 24 GB": ("medmo_4b_lora", 24, {}),
}
"""What is claimed to fit: config, 10^9 bytes of the card, changes."""


def planned(name: str, changes: dict[str, Any]) -> Memory:
    """Return what `--dry-run` estimates for one GPU, with documents as their settings would make them."""
    config = CONFIGS[name]().change(**changes)
    kit = load_kit(config, "meta")
    choose_trainable(config, kit.model)
    return estimate_memory(config, kit, None, 1)[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison; the status is 1 if an estimate is off by more than a tenth or a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true", help="also all layers of 4B and 8B")
    arguments = parser.parse_args(argv)
    good = True
    print(f"MiB, code of the CPU, torch {torch.__version__}")
    print(f"{'case':<42}{'estimated':>12}{'counted':>12}{'ratio':>8}{'s':>6}")
    for case in [*SMALL, *FROZEN, *SHARDED, *OTHER, *(WHOLE if arguments.whole else ())]:
        started = time.perf_counter()
        estimated, peak = compare(case)
        ratio = estimated.total / peak
        good &= abs(ratio - 1) <= 0.1
        sizes = f"{estimated.total / 2**20:>12.1f}{peak / 2**20:>12.1f}{ratio:>8.3f}"
        print(f"{case.name:<42}{sizes}{time.perf_counter() - started:>6.0f}", flush=True)
    for name, (config, room, changes) in ON_ONE_GPU.items():
        memory = planned(config, changes)
        good &= memory.total < room * 1e9
        print(f"\n{name}: {config} {changes}\n{memory.describe()}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""One training step of a whole model, packed, beside transformers' Qwen3-VL with the same weights, in the same run.

    python -m benchmarks.bench_step --out results        # on a GPU the 4B model and 8 images of 1280 x 1280 px in bf16
                                                         # on a CPU the tiny model and 2 images of 256 x 256 px in fp32

A step is forward, backward and optimiser, all blocks computed again in the backward pass, random weights, inputs on the
device. Both models have the same weights (ours, under their official names), the same documents and the same optimiser.
The peer gets its best: flash attention where it is installed, else PyTorch's SDPA, documents of one length, so that it
pads nothing, positions made beforehand, and its patch embedding as a matrix product instead of a 3-D convolution. Its
loss must be ours before it is timed.

On a CPU the two are timed step by step in turn. On a GPU they do not fit beside one another: each is timed by itself,
ours once more at the end, and the two figures of ours show what the machine does meanwhile. MFU counts useful
operations (`recipes/training/flops.py`), the same for both, over the device's bf16 peak, or over the products measured
in this run where that is not known.
"""

import argparse
import gc
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medmo_core.batch import IGNORE_INDEX, Batch, mrope_position_ids
from medmo_core.models.config import ModelConfig
from medmo_core.models.medmo import MedMO
from medmo_recipes.training.config import Optim
from medmo_recipes.training.flops import UsefulFlops, Work, peak_flops
from medmo_recipes.training.optim import Optimizer

from .bench_kernels import header
from .timing import Timing, time_ways

LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Relative difference of the two losses: bf16 rounds every activation."""


@dataclass(frozen=True)
class Size:
    """What is trained on.

    Attributes:
        preset: the model.
        documents: one image each.
        side: of each image, in patches.
        text: tokens of a document beside those of its image.
        learned: how many of them, the last ones, are in the loss.
        dtype: of weights and activations.
        kind: of the optimiser.
    """

    preset: str
    documents: int
    side: int
    text: int
    learned: int
    dtype: torch.dtype
    kind: Any


SIZES = {
    "cuda": Size("medmo-4b", 8, 80, 300, 150, torch.bfloat16, "adamw_bf16"),
    "cpu": Size("tiny", 2, 16, 60, 30, torch.float32, "adamw"),
}
"""By kind of device. 8 images of 1280 x 1280 px: 15,200 tokens, of which 12,800 are visual."""


def make_batch(size: Size, config: ModelConfig) -> Batch:
    """Draw documents: some text, an image, an answer."""
    generator = torch.Generator().manual_seed(0)
    visual = (size.side // config.vision.spatial_merge_size) ** 2
    before = (size.text - 2) // 4
    rows, labels, positions = [], [], []
    grid = torch.tensor([[1, size.side, size.side]])
    for _ in range(size.documents):
        ids = torch.randint(0, config.bos_token_id, (size.text + visual,), generator=generator)
        ids[before : before + visual + 2] = config.image_token_id
        ids[before], ids[before + visual + 1] = config.vision_start_token_id, config.vision_end_token_id
        learned = torch.full_like(ids, IGNORE_INDEX)
        learned[-size.learned :] = ids[-size.learned :]
        rows.append(ids)
        labels.append(learned)
        positions.append(mrope_position_ids(ids, grid, merge_size=config.vision.spatial_merge_size,
                                            image_token_id=config.image_token_id,
                                            video_token_id=config.video_token_id))  # fmt: skip
    num_patches = size.documents * size.side**2
    width = 3 * config.vision.patch_size**2
    return Batch(
        input_ids=torch.cat(rows),
        labels=torch.cat(labels),
        position_ids=torch.cat(positions, dim=1),
        cu_seqlens=torch.tensor([0, *map(len, rows)]).cumsum(0, dtype=torch.int32),
        patches={"qwen3_vl": torch.randint(0, 256, (num_patches, width), dtype=torch.uint8, generator=generator)},
        image_grid_thw={"qwen3_vl": grid.expand(size.documents, -1).contiguous()},
        sample_ids=tuple(f"document {i}" for i in range(size.documents)),
    )


def for_transformers(batch: Batch, size: Size, config: ModelConfig) -> dict[str, Tensor]:
    """Return the same documents as rows of equal length, with normalised pixels of doubled frames."""
    count, patch = size.documents, config.vision.patch_size
    assert batch.labels is not None
    ids = batch.input_ids.view(count, -1)
    pixels = batch.patches["qwen3_vl"].view(-1, 3, 1, patch, patch).expand(-1, -1, 2, -1, -1).flatten(1)
    return {
        "input_ids": ids,
        "labels": batch.labels.view(count, -1),
        "position_ids": batch.position_ids.view(3, count, -1),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": ((pixels.float() / 255 - 0.5) / 0.5).to(size.dtype),
        "image_grid_thw": batch.image_grid_thw["qwen3_vl"],
    }


Step = Callable[[], Tensor]
"""Do a training step; returns its mean loss."""


def our_step(model: MedMO, batch: Batch, size: Size) -> Step:
    """Return our step."""
    model.train()
    model.checkpoint_activations("all")
    optimizer, learned = Optimizer(model, Optim(kind=size.kind), steps=1000), size.documents * size.learned

    def step() -> Tensor:
        loss = model.token_losses(batch).total / learned
        loss.backward()
        optimizer.step(0)
        return loss.detach()

    return step


def linear_patch_embed(embed: nn.Module) -> None:
    """Turn transformers' patch embedding into the matrix product that it is."""
    projection: Any = embed.proj

    def forward(rows: Tensor) -> Tensor:
        return F.linear(rows.to(projection.weight.dtype), projection.weight.flatten(1), projection.bias)

    embed.forward = forward  # type: ignore[method-assign]


def their_step(model: MedMO, batch: Batch, size: Size, attention: str) -> Step:
    """Return the step of transformers' model with the weights of `model`."""
    import transformers

    config = transformers.Qwen3VLConfig(**model.config.to_dict())
    build = transformers.Qwen3VLForConditionalGeneration._from_config
    with torch.device(model.head_weight.device):
        theirs = build(config, attn_implementation=attention, dtype=size.dtype)
    theirs.load_state_dict(model.state_dict(), strict=False)
    theirs.tie_weights()
    linear_patch_embed(theirs.model.visual.patch_embed)
    theirs.gradient_checkpointing_enable({"use_reentrant": False})
    theirs.train()
    device = model.head_weight.device
    inputs = {name: tensor.to(device) for name, tensor in for_transformers(batch, size, model.config).items()}
    optimizer = Optimizer(theirs, Optim(kind=size.kind), steps=1000)

    def step() -> Tensor:
        loss = theirs(**inputs, use_cache=False).loss
        loss.backward()
        optimizer.step(0)
        return loss.detach()

    return step


def make_model(size: Size, device: torch.device) -> MedMO:
    """Build our model; the same weights each time."""
    torch.manual_seed(0)
    return MedMO.from_config(size.preset, device=device, dtype=size.dtype)


def best_attention(device: torch.device) -> str:
    """Return the fastest attention that transformers has here."""
    flash = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if flash else "sdpa"


def run(size: Size, device: torch.device, *, budget_s: float) -> list[dict[str, Any]]:
    """Time all ways; a way that cannot run or computes another loss has a reason instead of figures."""
    began = time.perf_counter()
    config = make_model(size, torch.device("meta")).config
    host, attention = make_batch(size, config), best_attention(device)
    batch, peer = host.to(device), f"transformers, {attention}, linear patch embedding"
    ways: dict[str, Callable[[MedMO], Step]] = {
        "ours": lambda model: our_step(model, batch, size),
        peer: lambda model: their_step(model, host, size, attention),
        "ours, again": lambda model: our_step(model, batch, size),
    }
    rows: list[dict[str, Any]] = []
    if importlib.util.find_spec("transformers") is None:
        del ways[peer]
        rows.append({"way": peer, "absent": "transformers not installed"})
    groups = [["ours", *([peer] if peer in ways else [])]] if device.type == "cpu" else [[name] for name in ways]
    truth: float | None = None
    for names in groups:
        spent = time.perf_counter() - began
        if truth is not None and spent > budget_s * 0.75:
            rows += [{"way": name, "absent": f"no time left of {budget_s:.0f} s"} for name in names]
            continue
        print(f"[{spent:.0f} s] {'; '.join(names)}", flush=True)
        steps: dict[str, Step] = {}
        found: dict[str, float] = {}
        try:
            for name in names:
                steps[name] = ways[name](make_model(size, device))
                found[name] = float(steps[name]())  # the first call makes the optimiser's state and compiles kernels
            truth = found["ours"] if truth is None else truth
            standing = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            for name, timing in time_ways(steps, device, repeats=20, budget_s=(budget_s - spent) / 6).items():
                difference = abs(found[name] / truth - 1)
                if difference > LOSS_TOLERANCE[size.dtype]:
                    rows.append({"way": name, "wrong": f"its loss {found[name]:.5f} is not ours, {truth:.5f}"})
                else:
                    rows.append({"way": name, "loss": found[name], **numbers(timing, standing)})
        except torch.OutOfMemoryError as error:
            rows += [{"way": name, "absent": f"out of memory: {str(error).splitlines()[0]}"} for name in names]
        steps.clear()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def numbers(timing: Timing, standing: int) -> dict[str, Any]:
    """Return seconds and, on a GPU, the most memory during a step; `standing` bytes are there all the time."""
    seconds = {f"{name}_s": round(getattr(timing, f"{name}_us") * 1e-6, 6) for name in ("median", "p20", "p80")}
    peak = {"peak_gib": round((standing + timing.peak_bytes) / 2**30, 3)} if timing.peak_bytes else {}
    return seconds | {"repeats": timing.repeats} | peak


def add_rates(rows: list[dict[str, Any]], work: Work, flops: float, peak: float) -> None:
    """Add tokens per second and MFU to the rows that have a time."""
    for row in rows:
        if "median_s" in row:
            row["tokens_per_s"] = round(work.tokens / row["median_s"], 1)
            row["mfu"] = round(flops / row["median_s"] / peak, 4)


def markdown(result: dict[str, Any]) -> str:
    """Return the results as a page."""
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in result["versions"].items())
    lines = [
        f"# A training step on {result['device']}",
        "",
        f"{result['date']}, commit {result['commit']}. {versions}.",
        f"{result['what']}. MFU over {result['peak_flops'] / 1e12:.4g} TFLOP/s ({result['peak_source']}).",
        "",
        "| way | median s | 20 % | 80 % | ratio | tokens/s | MFU | peak GiB | loss |",
        "|---" * 9 + "|",
    ]
    ours = statistics.fmean([r["median_s"] for r in result["steps"] if r["way"].startswith("ours") and "median_s" in r]
                            or [float("nan")])  # fmt: skip
    for row in result["steps"]:
        if "median_s" not in row:
            verdict = f"absent: {row['absent']}" if "absent" in row else f"WRONG: {row['wrong']}"
            lines.append(f"| {row['way']} | {verdict} |" + " |" * 7)
            continue
        ratio = "" if row["way"].startswith("ours") else f"{row['median_s'] / ours:.2f}"
        seconds = " | ".join(f"{row[name]:.4g}" for name in ("median_s", "p20_s", "p80_s"))
        rates = f"{row['tokens_per_s']:,.0f} | {row['mfu']:.1%} | {row.get('peak_gib', '')} | {row['loss']:.4f}"
        lines.append(f"| {row['way']} | {seconds} | {ratio} | {rates} |")
    return "\n".join([*lines, "", "research use only", ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns 1 where the peer's loss is not ours, or ours could not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for step.json and step.md")
    parser.add_argument("--budget-s", type=float, default=300.0, help="seconds for all, building the models included")
    parser.add_argument("--documents", type=int, help="instead of the size's own, where memory is short")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = SIZES[device.type]
    if arguments.documents:
        size = replace(size, documents=arguments.documents)
    model = make_model(size, torch.device("meta"))
    work = Work.of(make_batch(size, model.config), model)
    flops = UsefulFlops(model).of(work)
    result = header(device)
    known = peak_flops(device)
    result["peak_flops"] = known or result["ceilings"]["matmul_flops_per_s"]
    result["peak_source"] = "known of this device" if known else "products measured in this run"
    side, dtype = 16 * size.side, str(size.dtype).removeprefix("torch.")
    result["what"] = (
        f"{size.preset}, {size.documents} images of {side} x {side} px, {work.tokens:,} tokens, {dtype}, {size.kind}, "
        f"all blocks computed again, {flops / 1e12:.4g} TFLOP useful"
    )
    result["steps"] = run(size, device, budget_s=arguments.budget_s)
    add_rates(result["steps"], work, flops, result["peak_flops"])
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "step.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = markdown(result)
    (arguments.out / "step.md").write_text(page, encoding="utf-8")
    print(page)
    bad = [row for row in result["steps"] if "wrong" in row or (row["way"] == "ours" and "absent" in row)]
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Time the way of an image from JPEG bytes to patches beside transformers' processor, and the rest of the data flow.

    python -m benchmarks.bench_data                 # status 1 where ours is not four times faster, or packs are loose
    python -m benchmarks.bench_data --images 0      # without the loader's throughput

Decoding to patches: both ways start from the same bytes in memory, use one core, and run interleaved in one process, so
that a busy minute hits both; medians count. Their patches must agree first. Packing: 10,000 lengths of text and images,
a budget of four times the longest. Throughput: the loader over a tar shard of JPEG files, with several numbers of
workers, nothing else running.
"""

import argparse
import io
import json
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from medmo_core.batch import PatchSpec
from medmo_core.data.header import stored_size
from medmo_core.data.image import load_image
from medmo_core.data.mixture import Mixture
from medmo_core.data.open_source import open_source
from medmo_core.data.packer import Packer
from medmo_core.data.process import Processor
from medmo_core.data.record import ImageRef
from medmo_core.data.resize import patchify, smart_resize
from medmo_core.data.tokenizer import Tokenizer
from medmo_core.profile import QWEN3_VL
from medmo_recipes.training.data import Loader
from medmo_recipes.training.distributed import World
from medmo_recipes.training.skipped import SkippedSamples

from .timing import time_ways

SPEC = PatchSpec(patch_size=16, merge_size=2, temporal_patch_size=2)
MIN_PIXELS, MAX_PIXELS = 65_536, 16_777_216
REQUIRED_RATIO, REQUIRED_EFFICIENCY = 4.0, 0.97
CASES = {"1280x1280": (1280, 1280, MAX_PIXELS), "2048x2500, shrunk to 1280x1280 px of area": (2048, 2500, 1280 * 1280)}
"""Name -> width and height, and the largest area after resizing. The first is the one that is judged."""
DOCS_PER_STEP, MICRO_BATCH = 8, 2


@dataclass(frozen=True)
class InMemory:
    """A store of one image."""

    data: bytes

    def open(self, path: str) -> BinaryIO:
        """Return the image as a file to read."""
        return io.BytesIO(self.data)


def textured_jpeg(width: int, height: int, seed: int = 0) -> bytes:
    """Return a JPEG file with structure at several scales and grain, as scans have."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for cells, strength in ((8, 90), (64, 60), (320, 40)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) * (strength / 190)
    pixels += rng.normal(0, 6, (height, width, 1))
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def to_patches(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Take our way: decode, resize, cut."""
    pixels = load_image("image", root=InMemory(data)).pixels
    height, width = pixels.shape[:2]
    size = smart_resize(height, width, factor=SPEC.token_px, min_pixels=MIN_PIXELS, max_pixels=max_pixels)
    return patchify(pixels, SPEC, size)[0]


def their_way(max_pixels: int) -> Callable[[bytes], Any]:
    """Return transformers' way: decode with Pillow, then its image processor for Qwen3-VL."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(
        patch_size=SPEC.patch_size,
        temporal_patch_size=SPEC.temporal_patch_size,
        merge_size=SPEC.merge_size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": MIN_PIXELS, "longest_edge": max_pixels},
    )
    return lambda data: processor(images=[Image.open(io.BytesIO(data)).convert("RGB")], return_tensors="np")


def compare_decoding(repeats: int) -> float:
    """Print milliseconds per image and core of both ways; return the ratio of the first case."""
    torch.set_num_threads(1)
    ratios = []
    for name, (width, height, max_pixels) in CASES.items():
        data, theirs = textured_jpeg(width, height), their_way(max_pixels)
        expected = np.asarray(theirs(data)["pixel_values"]).reshape(-1, 3, SPEC.temporal_patch_size, SPEC.patch_size**2)
        rows = (expected[:, :, 0].reshape(len(expected), -1) * 0.5 + 0.5) * 255
        error = np.abs(rows - to_patches(data, max_pixels))
        if error.mean() > 0.3:
            raise ValueError(f"{name}: patches differ by {error.mean():.2f} grey levels in the mean")
        ways = {"ours": lambda d=data, m=max_pixels: to_patches(d, m), "transformers": lambda d=data, t=theirs: t(d)}
        times = time_ways(ways, torch.device("cpu"), repeats=repeats, budget_s=60)
        ours, peer = times["ours"], times["transformers"]
        ratios.append(peer.median_us / ours.median_us)
        print(
            f"JPEG {name} ({len(data) / 2**20:.2f} MiB) to patches, one core: "
            f"ours {ours.median_us / 1e3:.1f} ms [{ours.p20_us / 1e3:.1f}, {ours.p80_us / 1e3:.1f}], "
            f"transformers {peer.median_us / 1e3:.1f} ms [{peer.p20_us / 1e3:.1f}, {peer.p80_us / 1e3:.1f}]: "
            f"{ratios[-1]:.1f} times faster (patches differ by {error.mean():.3f} grey levels in the mean, "
            f"{error.max():.1f} at most; {ours.repeats} interleaved repeats)"
        )
        header = time_ways({"header": lambda d=data: stored_size(ImageRef("image"), InMemory(d))}, torch.device("cpu"))
        print(f"JPEG {name}: size from its header in {header['header'].median_us / 1e3:.3f} ms")
    return ratios[0]


def mixed_lengths(count: int, seed: int = 0) -> list[int]:
    """Return lengths of documents: log-normal texts, most with one to three images of 64 to 1,600 tokens each."""
    rng = random.Random(seed)
    lengths = []
    for _ in range(count):
        images = rng.choice((0, 0, 1, 1, 1, 3)) if rng.random() < 0.75 else 0
        shown = sum(rng.choice((64, 144, 256, 576, 1024, 1600)) for _ in range(images))
        lengths.append(shown + max(8, min(2048, int(rng.lognormvariate(5.0, 0.9)))))
    return lengths


def measure_packing(buffer_size: int = 512) -> float:
    """Print how full packs are; return the share of their tokens that is used."""
    lengths = mixed_lengths(10_000)
    packer = Packer(4 * max(lengths), buffer_size)
    began = time.perf_counter()
    for number, length in enumerate(lengths):
        packer.add(number, length)
        if packer.is_full:
            packer.take()
    while len(packer):
        packer.take()
    seconds = time.perf_counter() - began
    print(
        f"packing {len(lengths):,} documents of {min(lengths)} to {max(lengths)} tokens, budget {packer.budget:,}, "
        f"buffer {buffer_size}: {packer.num_packs} packs, {100 * packer.efficiency:.2f} % of their tokens used "
        f"({1e6 * seconds / len(lengths):.1f} us a document)"
    )
    return packer.efficiency


def write_shard(path: Path, count: int) -> None:
    """Write a tar shard of so many samples of a 1280x1280 JPEG each."""
    record = json.dumps({"question": "What does the scan show?", "answer": "A mass in the left lobe."}).encode()
    with tarfile.open(path, "w") as archive:
        for index in range(count):
            for name, data in ((f"{index}.json", record), (f"{index}.jpg", textured_jpeg(1280, 1280, index))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def measure_loader(folder: Path, num_images: int, num_workers: int) -> None:
    """Print images per second that a loader makes with some number of workers, after its first step."""
    source = open_source(str(folder / "shard.tar"))
    processor = Processor(
        Tokenizer.embedded(), {"qwen3_vl": SPEC}, QWEN3_VL, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, cache_bytes=0
    )
    loader = Loader(
        Mixture({"shard": (source, 1.0)}, seed=0).draw,
        processor,
        world=World(0, 1, torch.device("cpu")),
        docs_per_step=DOCS_PER_STEP,
        micro_batch=MICRO_BATCH,
        skipped=SkippedSamples(None),
        num_workers=num_workers,
    )
    began = time.perf_counter()
    loader.step(0)
    first = time.perf_counter() - began
    num_steps = max(1, num_images // DOCS_PER_STEP)
    began = time.perf_counter()
    for step in range(1, num_steps + 1):
        loader.step(step)
    seconds = time.perf_counter() - began
    loader.close()
    print(
        f"loader with {num_workers} workers: {num_steps * DOCS_PER_STEP / seconds:.1f} images of 1280x1280 px a second "
        f"(first step after {first:.1f} s)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run all comparisons; return 1 where a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25, help="timed runs of each way (default: %(default)s)")
    parser.add_argument("--images", type=int, default=160, help="images through the loader; 0: none (default: 160)")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="numbers of workers (default: 0 1 2)")
    arguments = parser.parse_args(argv)
    ratio = compare_decoding(arguments.repeats)
    efficiency = measure_packing()
    if arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            write_shard(Path(folder) / "shard.tar", 24)
            for num_workers in arguments.workers:
                measure_loader(Path(folder), arguments.images, num_workers)
    missed = []
    if ratio < REQUIRED_RATIO:
        missed.append(f"decoding is {ratio:.1f} times faster, required are {REQUIRED_RATIO:g}")
    if efficiency < REQUIRED_EFFICIENCY:
        missed.append(f"packs are used to {100 * efficiency:.1f} %, required are {100 * REQUIRED_EFFICIENCY:g} %")
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

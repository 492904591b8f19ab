"""The way of images from JPEG bytes to patches, beside transformers' image processors: one image, and a loader of many.

One image: all ways start from the same bytes in memory and use one core. Many: our loader reads samples from a tar
shard, writes their text as tokens and packs both into batches; the peer is an image processor alone in torch's
DataLoader with as many workers, its bytes in memory. A call is a whole pass that begins and ends with idle workers, so
that nothing of one way runs while the other is timed. Workers start before.
"""

import importlib
import importlib.util
import io
import json
import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medmo_core.batch import Batch, PatchSpec
from medmo_core.data.images.load import load_image
from medmo_core.data.images.patches import patchify, smart_resize
from medmo_core.data.processor import Processor
from medmo_core.data.sources.mixture import Mixture
from medmo_core.data.sources.open_source import open_source
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.profile import QWEN3_VL
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.loading.loader import Loader
from medmo_recipes.training.loading.skipped import SkippedSamples

from ..suite.comparison import OURS, Comparison, Ready, Way, Work
from ..suite.made_once import Shared
from ..suite.schema import Check
from .rewards import on_one_core

SPEC = PatchSpec(patch_size=16, merge_size=2, temporal_patch_size=2)
MIN_PIXELS, MAX_PIXELS = 65_536, 16_777_216
GREY_LEVELS = 0.3
"""Patches may differ from Pillow's by so much in the mean: a large JPEG is decoded to a smaller size, which is then
resized less."""
AGAINST = "Pillow's full decoding, grey levels in the mean"
PROCESSORS = {
    "transformers": ("image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil"),
    "transformers, torchvision": ("image_processing_qwen2_vl", "Qwen2VLImageProcessor"),
}
"""Way -> module and class of the image processor."""
PAGE = {"question": "What does the scan show?", "answer": "A mass in the left lobe."}
FILES = 4
"""Different images; a pass shows each several times, decoded every time."""

Rows = NDArray[np.float32]


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons; all of them run on the CPU, with more workers beside a GPU."""
    if short:
        return [one_image(320, 256, MAX_PIXELS), many_images(320, 4, 1)]
    many = (64, 8) if device.type == "cuda" else (8, 2)
    return [one_image(1280, 1280, MAX_PIXELS), one_image(2048, 2500, 1280 * 1280), many_images(1280, *many)]


def one_image(width: int, height: int, max_pixels: int) -> Comparison:
    """Compare on one image."""
    image = Shared(partial(_OneImage, width, height, max_pixels))

    def ours() -> Ready:
        return _ready(image, lambda data: to_patches(data, max_pixels), lambda patches: patches)

    def theirs(name: str) -> Ready:
        return _ready(image, TheirWay(name, max_pixels), grey_levels)

    ways = [Way(OURS, ours, "ours"), *(Way(n, partial(theirs, n), absent=missing(n)) for n in PROCESSORS)]
    shrunk = f", shrunk to {max_pixels / 2**20:.1f} Mpx" if max_pixels < width * height else ""
    case = f"one JPEG of {width} x {height} px{shrunk}, one core"
    work = {"to patches": Work(items=1, unit="images")}
    return Comparison("recipes", "loader", case, "uint8", ("to patches",), ways, work, seconds=0.8)


def many_images(side: int, images: int, workers: int) -> Comparison:
    """Compare on a pass over square images with so many workers."""
    shard = Shared(partial(_Shard, side))
    ways = [Way(OURS, partial(_our_pass, shard, images, workers), "ours")]
    ways += [Way(name, partial(_their_pass, name, shard, images, workers), absent=missing(name)) for name in PROCESSORS]
    case = f"{images} JPEGs of {side} x {side} px, {workers} worker{'s' if workers > 1 else ''}"
    work = {"load": Work(items=images, unit="images")}
    return Comparison("recipes", "loader", case, "uint8", ("load",), ways, work, seconds=1.0)


def missing(name: str) -> str:
    """Return why an image processor of transformers cannot run here."""
    needed = ("transformers", "torchvision") if "torchvision" in name else ("transformers",)
    return ", ".join(f"{package} not installed" for package in needed if importlib.util.find_spec(package) is None)


class _OneImage:
    """An image and its patches."""

    def __init__(self, width: int, height: int, max_pixels: int) -> None:
        self.data = textured_jpeg(width, height)
        self.truth = true_patches(self.data, max_pixels)


class _Shard:
    """Samples in a tar shard, of a folder that goes with this object, and the patches of each image."""

    def __init__(self, side: int) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="medmo-bench-")
        self.path = Path(self.folder.name) / "shard.tar"
        self.jpegs = [textured_jpeg(side, side, seed) for seed in range(FILES)]
        self.truth = [true_patches(data, MAX_PIXELS) for data in self.jpegs]
        write_shard(self.path, self.jpegs)


def _ready(image: Shared[_OneImage], way: Callable[[bytes], Any], rows: Callable[[Any], Any]) -> Ready:
    given = image()
    call = on_one_core(lambda: way(given.data))
    return Ready({"to patches": call}, Check(AGAINST, difference(rows(call()), given.truth), GREY_LEVELS))


def _our_pass(shard: Shared[_Shard], images: int, workers: int) -> Ready:
    """Load all images as the one step of their number."""
    given = shard()
    loader = new_loader(given.path, images, workers)
    step = -1

    def load() -> list[Batch]:
        nonlocal step
        step += 1
        batches = loader.step(step, look_ahead=False)
        shown = sum(len(batch.sample_ids) for batch in batches)
        if shown != images:
            raise RuntimeError(f"{shown} of {images} images were loaded from {given.path}")
        return batches

    weakref.finalize(load, loader.close)
    batches = load()
    shown = [int(name.rsplit("/", 1)[-1]) for batch in batches for name in batch.sample_ids]
    found = torch.cat([batch.patches["qwen3_vl"] for batch in batches]).chunk(images)
    error = max(difference(rows.numpy(), given.truth[number]) for number, rows in zip(shown, found, strict=True))
    return Ready({"load": load}, Check(AGAINST, error, GREY_LEVELS))


def _their_pass(name: str, shard: Shared[_Shard], images: int, workers: int) -> Ready:
    """Let torch's DataLoader pass over all images; each arrives alone, which saves copying them together."""
    given = shard()
    held = 2 * workers * given.truth[0].size * SPEC.temporal_patch_size * 4  # two ahead per worker, in fp32
    if Path("/dev/shm").exists() and shutil.disk_usage("/dev/shm").free < held:
        raise NotImplementedError(f"workers hand over {held / 1e6:.0f} MB through /dev/shm, which has less")
    jpegs = Jpegs(given.jpegs, images, TheirWay(name, MAX_PIXELS))
    loader: DataLoader[Tensor] = DataLoader(jpegs, batch_size=None, num_workers=workers, persistent_workers=True)
    error = max(difference(grey_levels(rows), given.truth[i % FILES]) for i, rows in enumerate(loader))

    def load() -> None:
        for _ in loader:
            pass

    return Ready({"load": load}, Check(AGAINST, error, GREY_LEVELS))


@dataclass(frozen=True)
class InMemory:
    """A store of one image."""

    data: bytes

    def open(self, path: str) -> BinaryIO:
        """Return the image as a file to read."""
        return io.BytesIO(self.data)


@dataclass(frozen=True)
class Jpegs(Dataset[Tensor]):
    """Images that DataLoader's workers process.

    Attributes:
        files: repeated in turn.
        count: number of items.
        process: bytes -> patches.
    """

    files: list[bytes]
    count: int
    process: Callable[[bytes], Tensor]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if index >= self.count:
            raise IndexError(index)
        return self.process(self.files[index % len(self.files)])


def to_patches(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Take our way: decode, resize, cut."""
    pixels = load_image("image", root=InMemory(data)).pixels
    height, width = pixels.shape[:2]
    size = smart_resize(height, width, factor=SPEC.token_px, min_pixels=MIN_PIXELS, max_pixels=max_pixels)
    return patchify(pixels, SPEC, size)[0]


class TheirWay:
    """Decoding with Pillow, then an image processor of transformers for Qwen3-VL.

    Args:
        name: key of `PROCESSORS`.
        max_pixels: largest area after resizing.
    """

    def __init__(self, name: str, max_pixels: int) -> None:
        module, processor = PROCESSORS[name]
        found = getattr(importlib.import_module(f"transformers.models.qwen2_vl.{module}"), processor)
        self.processor = found(
            patch_size=SPEC.patch_size,
            temporal_patch_size=SPEC.temporal_patch_size,
            merge_size=SPEC.merge_size,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            size={"shortest_edge": MIN_PIXELS, "longest_edge": max_pixels},
        )

    def __call__(self, data: bytes) -> Tensor:
        """Return normalised patches of doubled frames."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        pixels: Tensor = self.processor(images=[image], return_tensors="pt")["pixel_values"]
        return pixels


def grey_levels(pixels: Tensor) -> Rows:
    """Return patches as ours are, from what transformers' processors make of them."""
    rows = pixels.reshape(len(pixels), 3, SPEC.temporal_patch_size, -1)[:, :, 0].flatten(1)
    return ((rows * 0.5 + 0.5) * 255).numpy()


def true_patches(data: bytes, max_pixels: int) -> Rows:
    """Decode every pixel and resize with Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    limits = {"factor": SPEC.token_px, "min_pixels": MIN_PIXELS, "max_pixels": max_pixels}
    height, width = smart_resize(image.height, image.width, **limits)
    shrunk = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return patchify(shrunk, SPEC, (height, width))[0].astype(np.float32)


def difference(rows: NDArray[Any], truth: Rows) -> float:
    """Return the mean difference of two sets of patches; infinite where they are not as many."""
    return float(np.abs(rows - truth).mean()) if rows.shape == truth.shape else float("inf")


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


def write_shard(path: Path, jpegs: Sequence[bytes]) -> None:
    """Write a tar shard of a sample for each image; its number is its id."""
    with tarfile.open(path, "w") as archive:
        for number, jpeg in enumerate(jpegs):
            record = json.dumps({"id": str(number), **PAGE}).encode()
            for name, data in ((f"{number}.json", record), (f"{number}.jpg", jpeg)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def new_loader(shard: Path, images: int, workers: int) -> Loader:
    """Return a loader over a shard whose steps show so many images."""
    source = open_source(str(shard))
    processor = Processor(
        Tokenizer.embedded(), {"qwen3_vl": SPEC}, QWEN3_VL, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, cache_bytes=0
    )
    return Loader(
        Mixture({"shard": (source, 1.0)}, seed=0).draw,
        processor,
        world=World(0, 1, torch.device("cpu")),
        docs_per_step=images,
        micro_batch=2,
        skipped=SkippedSamples(None),
        num_workers=workers,
    )

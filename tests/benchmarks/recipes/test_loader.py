"""The comparison of loaders: all ways make the same patches, every image is there in every pass, workers leave."""

import gc
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.recipes import loader as b
from benchmarks.suite.comparison import Comparison, measure
from benchmarks.suite.schema import Row
from medmo_core.data.sources.open_source import open_source

CPU = torch.device("cpu")


def rows(comparison: Comparison) -> dict[str, Row]:
    """Measure quickly; way -> row."""
    return {row.way: row for row in measure(replace(comparison, seconds=0.0, repeats=3), CPU)}


def test_one_image_becomes_the_same_patches_and_other_pixels_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    for size in ((320, 256, b.MAX_PIXELS), (700, 500, 65_536)):
        found = rows(b.one_image(*size))
        assert [found[way].status for way in ("ours", "transformers")] == ["timed", "timed"]
    honest = b.to_patches
    monkeypatch.setattr(b, "to_patches", lambda *arguments: honest(*arguments)[::-1])
    monkeypatch.setattr(b, "grey_levels", lambda pixels: pixels[:1].numpy())
    found = rows(b.one_image(320, 256, b.MAX_PIXELS))
    assert found["ours"].status == "wrong" and "Pillow's full decoding" in found["ours"].reason
    assert found["transformers"].status == "wrong" and "off by inf" in found["transformers"].reason


def test_the_shrunk_image_is_shrunk() -> None:
    data = b.textured_jpeg(700, 500)
    patches, truth = b.to_patches(data, 65_536), b.true_patches(data, 65_536)
    assert patches.shape == truth.shape and patches.size <= 3 * 65_536
    assert b.difference(patches, truth) < b.GREY_LEVELS < b.difference(patches[::-1], truth)


def test_a_pass_shows_every_image_and_its_workers_leave() -> None:
    pytest.importorskip("transformers")
    before = set(multiprocessing.active_children())
    found = rows(b.many_images(320, 4, 1))
    assert [found[way].status for way in ("ours", "transformers")] == ["timed", "timed"]
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


def test_a_pass_without_images_is_no_pass(tmp_path: Path) -> None:
    """What cannot be read is left out of a batch; that would make a loader very fast."""

    class Lost:
        """A shard that is gone once it was checked."""

        path = tmp_path / "shard.tar"
        truth = [b.true_patches(b.textured_jpeg(64, 48), b.MAX_PIXELS)] * 2

    b.write_shard(Lost.path, [b.textured_jpeg(64, 48)] * 2)
    load = b._our_pass(Lost, 2, 0).calls["load"]  # type: ignore[arg-type]
    load()
    Lost.path.write_bytes(bytes(Lost.path.stat().st_size))
    with pytest.raises(RuntimeError, match="0 of 2 images"):
        load()


def test_the_shard_is_a_source(tmp_path: Path) -> None:
    b.write_shard(tmp_path / "shard.tar", [b.textured_jpeg(64, 48)] * 2)
    samples = list(open_source(str(tmp_path / "shard.tar")).samples)
    assert [(sample.id, sample.images[0].size) for sample in samples] == [("0", (64, 48)), ("1", (64, 48))]


def test_what_is_not_installed_or_does_not_fit_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(b.importlib.util, "find_spec", lambda name: None if name == "torchvision" else name)
    assert b.missing("transformers") == "" and b.missing("transformers, torchvision") == "torchvision not installed"
    usage: Callable[[str], Any] = lambda path: type("Usage", (), {"free": 0})  # noqa: E731
    monkeypatch.setattr(b.shutil, "disk_usage", usage)
    with pytest.raises(NotImplementedError, match="through /dev/shm"):
        b._their_pass("transformers", partial(b._Shard, 64), 2, 1)  # type: ignore[arg-type]


def test_listing_makes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(b, "textured_jpeg", pytest.fail)
    for short, count in ((True, 2), (False, 3)):
        names = [comparison.name for comparison in b.comparisons(CPU, short=short)]
        assert len(set(names)) == len(names) == count

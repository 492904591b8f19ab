"""The official folder is written once: at whatever moment a save fails, a reader sees the old checkpoint or the new."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medmo_core import durable
from medmo_core.models import MedMO
from medmo_core.models.official import write
from medmo_core.models.official.names import PREPROCESSOR_FILE
from medmo_core.models.official.write import processor_configs, save_checkpoint
from medmo_core.profile import MEDMO, CheckpointProfile

SHARD = 300_000  # bytes: cuts the debug model into a few files
OLD, NEW = (4096, 8192), (1024, 9216)
"""Limits of the image area in px, smallest and largest; the weights of a checkpoint begin with the smallest."""


class NamedTokenizer:
    """A tokenizer whose file holds a number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text(str(self.number))


class Disk:
    """Operations on files, of which the n-th fails; after a kill all later ones do, too.

    Attributes:
        count: operations so far.
    """

    def __init__(self, fails_at: int, killed: bool) -> None:
        self.fails_at, self.killed, self.count = fails_at, killed, 0

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.fails_at or (self.killed and self.count > self.fails_at):
                raise OSError("No space left on device")
            return function(*args, **kwargs)

        return call


@pytest.fixture(scope="module")
def model() -> MedMO:
    return MedMO.from_config("debug")


def save(model: MedMO, folder: Path, limits: tuple[int, int]) -> None:
    """Save a checkpoint whose every part shows the limits that it was made with."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float(limits[0]))
    model.save_pretrained(
        folder,
        NamedTokenizer(limits[0]),
        MEDMO,
        min_pixels=limits[0],
        max_pixels=limits[1],
        max_shard_bytes=SHARD if limits == NEW else 10**9,
    )


def seen(folder: Path) -> tuple[int, int] | None:
    """Return the limits of the one checkpoint that all files are of; None: a reader finds no checkpoint."""
    if not (folder / "config.json").exists():
        return None
    size = json.loads((folder / PREPROCESSOR_FILE).read_text())["size"]
    weights = {
        float(value) for tensor in MedMO.from_pretrained(folder).state_dict().values() for value in tensor.unique()
    }
    assert weights == {float(size["shortest_edge"])}, "weights of one checkpoint with the limits of another"
    assert (folder / "tokenizer.json").read_text() == str(size["shortest_edge"])
    assert CheckpointProfile.load(folder) == MEDMO
    return size["shortest_edge"], size["longest_edge"]


def break_at(number: int, killed: bool, exchange: bool, patch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(number, killed)
    patch.setattr(os, "fsync", disk.counted(lambda handle: None))
    for name in ("replace", "rename", "write_bytes"):
        patch.setattr(Path, name, disk.counted(getattr(Path, name)))
    patch.setattr(write, "save_file", disk.counted(write.save_file))
    swap = durable._exchange if exchange else lambda a, b: False
    patch.setattr(durable, "_exchange", disk.counted(swap))
    if killed:  # a live process copies what it cannot link, and deletes what it began
        patch.setattr(os, "link", disk.counted(os.link))
        patch.setattr(shutil, "copy2", disk.counted(shutil.copy2))
        patch.setattr(shutil, "rmtree", disk.counted(shutil.rmtree))
    return disk


def can_exchange(folder: Path) -> bool:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    return durable._exchange(folder / "a", folder / "b")


@pytest.mark.parametrize("before", ["nothing", "a checkpoint", "other files"])
@pytest.mark.parametrize(("killed", "exchange"), [(False, True), (False, False), (True, True)], ids=str)
def test_a_save_that_fails_anywhere_leaves_the_old_checkpoint_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: MedMO, before: str, killed: bool, exchange: bool
) -> None:
    if killed and not can_exchange(tmp_path / "probe"):
        pytest.skip("this disk cannot exchange two names in one step")
    save(model, tmp_path / "old", OLD)
    outcomes = []
    for number in range(1, 200):
        folder = tmp_path / str(number) / "final"
        if before == "a checkpoint":
            shutil.copytree(tmp_path / "old", folder)
        folder.mkdir(parents=True, exist_ok=True)
        if before != "nothing":
            (folder / "notes.txt").write_text("mine")
        with monkeypatch.context() as patch:
            disk = break_at(number, killed, exchange, patch)
            with contextlib.suppress(OSError):
                save(model, folder, NEW)
        outcomes.append(seen(folder))
        assert before == "nothing" or (folder / "notes.txt").read_text() == "mine"
        assert killed or [path.name for path in folder.parent.iterdir() if ".partial" in path.name] == []
        if disk.count < number:  # nothing failed any more
            break
    old = OLD if before == "a checkpoint" else None
    assert outcomes[0] == old
    assert outcomes[-1] == NEW
    assert outcomes == sorted(outcomes, key=lambda outcome: outcome == NEW), (
        "an early failure saved, a late one did not"
    )
    assert set(outcomes) == {old, NEW}
    assert len(outcomes) > 20


def test_mixed_folders_are_noticed(tmp_path: Path, model: MedMO) -> None:
    save(model, tmp_path, OLD)
    values = json.loads((tmp_path / PREPROCESSOR_FILE).read_text())
    values["size"] = {"shortest_edge": NEW[0], "longest_edge": NEW[1]}
    (tmp_path / PREPROCESSOR_FILE).write_text(json.dumps(values))
    with pytest.raises(AssertionError, match="weights of one checkpoint with the limits of another"):
        seen(tmp_path)


def test_folders_beside_the_weights_are_kept(tmp_path: Path, model: MedMO) -> None:
    folder = tmp_path / "final"
    save(model, folder, OLD)
    (folder / "adapter").mkdir()
    (folder / "adapter/notes.txt").write_text("mine")
    (folder / "link.txt").symlink_to("adapter/notes.txt")
    save(model, folder, NEW)
    assert seen(folder) == NEW
    assert (folder / "adapter/notes.txt").read_text() == (folder / "link.txt").read_text() == "mine"
    assert (folder / "link.txt").is_symlink()
    assert not (folder / "model.safetensors").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_limits_default_to_those_of_qwen(tmp_path: Path, model: MedMO) -> None:
    model.save_pretrained(tmp_path)
    size = json.loads((tmp_path / PREPROCESSOR_FILE).read_text())["size"]
    assert size == {"shortest_edge": 65536, "longest_edge": 16777216}


def test_a_foreign_tower_states_the_limits_that_it_was_given_and_nothing_else(tmp_path: Path) -> None:
    other = MedMO.from_config("debug", encoder="siglip2")
    assert processor_configs(other.config.to_dict()) == {}
    other.save_pretrained(tmp_path, min_pixels=1024, max_pixels=4096)
    assert json.loads((tmp_path / PREPROCESSOR_FILE).read_text()) == {
        "size": {"shortest_edge": 1024, "longest_edge": 4096}
    }


@pytest.mark.parametrize("limits", [(0, 10), (20, 10)])
def test_impossible_limits_are_refused_before_anything_is_written(
    tmp_path: Path, model: MedMO, limits: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match=rf"min_pixels is {limits[0]} and max_pixels is 10, expected 0 < min_pixels"):
        save_checkpoint(
            tmp_path / "out",
            model.state_dict(),
            config=model.config.to_dict(),
            min_pixels=limits[0],
            max_pixels=limits[1],
        )
    assert list(tmp_path.iterdir()) == []

"""Workers: the same batches for any number of them, pixels through shared memory, and no failure that hangs."""

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from medmo_core.batch import Batch, PatchSpec
from medmo_core.data.packing import pack
from medmo_core.data.processor import Processor
from medmo_core.data.records.read import sample_from_json
from medmo_core.data.records.sample import Answer, ImageRef, Sample
from medmo_core.data.sources.mixture import Mixture
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.errors import UserError
from medmo_core.profile import QWEN3_VL
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.loading.documents import SampleError
from medmo_recipes.training.loading.loader import Loader
from medmo_recipes.training.loading.plan import TokenBudget
from medmo_recipes.training.loading.skipped import BadData, SkippedSamples
from medmo_recipes.training.loading.workers import WorkerDied, Workers, _answer, _parts, _Shelf

embedded = cache(Tokenizer.embedded)


class Pictures:
    """A source of questions about pictures; some of them are trouble."""

    def __init__(self, root: Path, trouble: str = "") -> None:
        self.name, self.root, self.trouble = "pictures", root, trouble

    def __len__(self) -> int:
        return 24

    def get(self, index: int, rng: random.Random) -> Sample:
        if index == 7:
            if self.trouble == "bug":
                raise KeyError("no such key")
            if self.trouble == "library":
                raise ImportError('reading DICOM needs pydicom: pip install "medmo[medical]"')
            if self.trouble == "slow":
                time.sleep(600)
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "scan " * (index + 1)}]}
        images = (ImageRef(f"{index % 5}.png"),)
        return Sample(f"p{index}", "vqa", images, (turn,), answer=Answer("open", "<|im_end|>"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (70 + 20 * index, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:900])
    return folder


def loader(root: Path, num_workers: int, trouble: str = "", skipped: SkippedSamples | None = None) -> Loader:
    sizes: dict[str, Any] = {"min_pixels": 32 * 32, "max_pixels": 128 * 128}
    return Loader(
        Mixture({"pictures": (Pictures(root, trouble), 1.0)}, seed=0).draw,
        Processor(embedded(), {"qwen3_vl": PatchSpec(16, 2, 2)}, QWEN3_VL, **sizes),
        world=World(0, 1, torch.device("cpu")),
        docs_per_step=4,
        micro_batch=2,
        skipped=skipped or SkippedSamples(None),
        by_tokens=TokenBudget(200, 3, 16),
        num_workers=num_workers,
    )


@pytest.fixture(params=[1, 2])
def working(request: pytest.FixtureRequest, root: Path) -> Iterator[Loader]:
    feed = loader(root, request.param)
    yield feed
    feed.close()


def assert_equal(found: Batch, expected: Batch) -> None:
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if isinstance(value, Tensor):
            assert value.dtype == other.dtype and torch.equal(value, other), name
        elif isinstance(value, dict):
            assert value.keys() == other.keys() and all(torch.equal(value[key], other[key]) for key in value), name
        else:
            assert value == other, name


def test_batches_are_the_same_for_any_number_of_workers(root: Path, working: Loader) -> None:
    """Bit for bit, text that spells a special token and a torn picture included; and so are state and counts."""
    alone = loader(root, 0)
    for step in range(5):
        expected, found = alone.step(step), working.step(step)
        assert len(found) == len(expected) == 3
        for batch, other in zip(found, expected, strict=True):
            assert_equal(batch, other)
        assert working.state() == alone.state()
    assert working.skipped.state() == alone.skipped.state()
    assert working.skipped.kinds["unreadable"] > 0
    working.restore(alone.state())
    assert_equal(working.step(5)[0], alone.step(5)[0])
    alone.close()


def test_pixels_stay_out_of_the_pipe_and_their_memory_stays(root: Path) -> None:
    documents, shelf = loader(root, 0)._documents, _Shelf()
    memory: list[int] = []
    for number in range(6):
        outcome, answer, grown = _answer(documents, "batch", [number], shelf)
        assert outcome == "ok"
        if answer[0] is None:  # the torn picture
            continue
        start, shape = answer[0]["patches"]["qwen3_vl"]
        assert len(ForkingPickler.dumps((outcome, answer))) < 8000 < shape[0] * shape[1]
        item = documents.documents_of(number)
        assert isinstance(item, list)
        found = shelf.memory[start : start + shape[0] * shape[1]].view(shape).numpy()
        assert np.array_equal(found, item[0].patches["qwen3_vl"])
        if grown is not None:
            assert grown.is_shared() and grown.data_ptr() == shelf.memory.data_ptr()
            memory.append(grown.numel())
    assert 1 <= len(memory) < 4 and memory == sorted(memory)


def test_no_tensor_goes_through_the_pipe(root: Path) -> None:
    """Each would take a file descriptor on both sides."""
    specs = {"qwen3_vl": PatchSpec(16, 2, 2)}
    processor = Processor(embedded(), specs, QWEN3_VL, min_pixels=32 * 32, max_pixels=128 * 128, looks=True)
    record = {"id": "s", "images": [{"path": "0.png", "width": 90, "height": 70}], "question": "Where?",
              "boxes": [{"label": "nodule", "xyxy": [9, 7, 45, 35]}]}  # fmt: skip
    batch, shelf = pack([processor.encode(replace(sample_from_json(record), root=root))]), _Shelf()
    assert batch.looks
    shelf.hold(batch.patches)
    parts = _parts(batch)

    def tensors(value: Any) -> list[Tensor]:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        return [value] if isinstance(value, Tensor) else [tensor for part in inside for tensor in tensors(part)]

    assert tensors(parts) == []
    found: Any = SimpleNamespace(_pin=False)
    again = Workers._assemble(found, parts, shelf.memory)
    assert_equal(replace(again, looks=()), replace(batch, looks=()))
    for one, other in zip(again.looks, batch.looks, strict=True):
        assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(
            vars(one).values(), vars(other).values(), strict=True))  # fmt: skip


def test_a_worker_without_shared_memory_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensor: Tensor) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", full)
    outcome, answer, _ = _answer(loader(root, 0)._documents, "batch", [0], _Shelf())
    assert outcome == "no memory" and answer.startswith("shared memory ran out: enlarge /dev/shm")
    assert issubclass(WorkerDied, UserError)  # one line, no traceback


def test_a_killed_worker_ends_the_run_at_once_and_says_so(root: Path) -> None:
    feed = loader(root, 2)
    feed.step(0)
    workers = feed._workers
    assert workers is not None
    for process in workers._processes:
        os.kill(process.pid or 0, signal.SIGTERM)  # asks the run to end, not them
    feed.step(1)
    os.kill(workers._processes[0].pid or 0, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(WorkerDied, match=r"the data worker data-0 \(process \d+\) ended by SIGKILL \(killed, perhaps"):
        for step in range(2, 12):
            feed.step(step)
    assert time.monotonic() - began < 20
    feed.close()


def test_a_worker_in_the_middle_of_something_can_be_ended(root: Path) -> None:
    feed = loader(root, 1, "slow")
    workers = Workers(feed._documents, 1)
    numbers = [n for n in range(24) if feed._documents.draw.__self__._order(0, 0)[n] == 7]  # type: ignore[attr-defined]
    answer = workers.batch(numbers)
    with pytest.raises(TimeoutError):
        answer.result(timeout=0.5)
    began = time.monotonic()
    workers.close()
    with pytest.raises(WorkerDied, match="ended by SIGKILL"):
        answer.result(timeout=5)
    assert time.monotonic() - began < 5
    assert not workers._processes[0].is_alive()
    feed.close()


def test_a_worker_ends_when_the_training_process_is_gone(root: Path) -> None:
    """However it went: its end of the link closes with it."""
    workers = Workers(loader(root, 0)._documents, 1)
    assert workers.lengths([0, 1])
    workers._links[0].close()
    workers._processes[0].join(20)
    assert workers._processes[0].exitcode == 0
    workers.close()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("trouble", "kind", "message"),
    [
        ("bug", SampleError, r"sample draw \d+ \(draw \d+\): KeyError: 'no such key'"),
        ("library", BadData, r"sample draw \d+ \(draw \d+\): reading DICOM needs pydicom: pip install"),
    ],
)
def test_an_error_names_the_sample(
    root: Path, num_workers: int, trouble: str, kind: type[Exception], message: str
) -> None:
    feed = loader(root, num_workers, trouble)
    with pytest.raises(kind, match=message):
        for step in range(12):
            feed.step(step)
    feed.close()

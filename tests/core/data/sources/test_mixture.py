"""Mixtures: draw n depends on seed and n alone, weights are kept, no sample is forgotten; crops carry their boxes."""

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medmo_core.data.images.crop import crop_sample, random_square_crop, random_square_window
from medmo_core.data.images.load import crop_pixels
from medmo_core.data.records.faults import RecordError
from medmo_core.data.records.sample import Answer, BoxAnnotation, ImageRef, Sample
from medmo_core.data.sources.mixture import Mixture
from medmo_core.data.sources.open_source import open_source


class Numbers:
    """A source of numbered samples that also says what its generator drew."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size, self.root = name, size, Path("/data") / name
        self.stream: str | None = None

    def __len__(self) -> int:
        return self.size

    def get(self, index: int, rng: random.Random) -> Sample:
        return Sample(f"{self.name}:{index}", "text", provenance=rng.random())


def mixture(seed: int = 0, **parts: tuple[int, float]) -> Mixture:
    return Mixture({name: (Numbers(name, size), weight) for name, (size, weight) in parts.items()}, seed)


def test_a_draw_depends_on_seed_and_number_alone() -> None:
    parts = {"a": (7, 3.0), "b": (50, 1.0)}
    forward, numbers = mixture(5, **parts), range(1000)
    expected = [forward.draw(n) for n in numbers]
    backward = mixture(5, **parts)
    assert [backward.draw(n) for n in reversed(numbers)] == expected[::-1]
    assert mixture(5, **parts).draw(997) == expected[997]  # a run that resumes there has drawn nothing before
    assert [mixture(6, **parts).draw(n).id for n in range(50)] != [s.id for s in expected[:50]]


def test_a_source_that_is_renamed_keeps_its_random_numbers_by_its_stream() -> None:
    def draws(name: str, stream: str | None) -> list[tuple[str, Any]]:
        source = Numbers("a", 7)
        source.stream = stream
        mixed = Mixture({name: (source, 1.0)}, 5)
        return [(sample.id, sample.provenance) for sample in map(mixed.draw, range(30))]

    before = draws("old", None)
    assert draws("new", "old") == before
    assert draws("new", None) != before


def test_processes_divide_the_draws_without_overlap() -> None:
    """Each number is somebody's, whatever the number of processes; a source of one epoch is then seen once in all."""
    size = 40
    ranks = [mixture(a=(size, 1.0)) for _ in range(4)]
    drawn = [ranks[n % 4].draw(n).id for n in range(size)]
    assert sorted(drawn) == sorted(f"a:{i}" for i in range(size))


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_weights_are_kept_to_within_one_draw_per_block(weights: list[float], seed: int) -> None:
    mixed = mixture(seed, **{f"s{i}": (3, w) for i, w in enumerate(weights)})
    blocks = 3 * mixed._schedule.block
    seen = Counter(mixed.draw(n).id.split(":")[0] for n in range(blocks))
    for i, weight in enumerate(weights):
        assert abs(seen[f"s{i}"] - blocks * weight / sum(weights)) <= 1.0 + 1e-6


@given(st.integers(1, 30), st.floats(0.05, 5), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_every_sample_comes_once_per_epoch(size: int, weight: float, seed: int) -> None:
    mixed = mixture(seed, a=(size, weight), b=(5, 1.0))
    mine = [s.id for s in (mixed.draw(n) for n in range(600)) if s.id.startswith("a:")]
    epochs = [mine[i : i + size] for i in range(0, len(mine) - size + 1, size)]
    assert all(sorted(epoch) == sorted(f"a:{i}" for i in range(size)) for epoch in epochs)
    assert size < 16 or len({tuple(epoch) for epoch in epochs}) == len(epochs)  # each epoch in an order of its own


def test_samples_carry_the_root_of_their_source() -> None:
    assert {mixture(a=(2, 1.0), b=(2, 1.0)).draw(n).root for n in range(70)} == {Path("/data/a"), Path("/data/b")}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "at least one source"),
        ({"a": (3, 0.0)}, "weight of a is 0.0; expected a number above 0"),
        ({"a": (3, float("nan"))}, "weight of a is nan"),
        ({"a": (0, 1.0)}, "a holds no sample"),
    ],
)
def test_a_mixture_of_nothing_is_refused(parts: dict[str, tuple[int, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture(**parts)


def write(folder: Path, *records: dict[str, Any]) -> Path:
    Image.new("RGB", (100, 80)).save(folder / "a.png")
    path = folder / "my.jsonl"
    path.write_text("\n".join(json.dumps({"image": "a.png", "question": "?", **r}) for r in records))
    return path


def test_a_source_serves_its_split(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    path = write(tmp_path, {"answer": "a"}, {"answer": "b", "split": "test", "image": "b.png"}, {"answer": "c"})
    assert [s.answer.value for s in open_source(str(path), split="train").samples if s.answer] == ["a", "c"]
    assert len(open_source(str(path))) == 3
    with pytest.raises(ValueError, match=r"my\.jsonl: no record of split 'val'; its records belong to: test, train"):
        open_source(str(path), split="val")


def test_a_broken_line_stops_before_training_and_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, {"answer": "a"})
    path.write_text(path.read_text() + '\n{"image": ')
    with pytest.raises(RecordError, match=r"my\.jsonl:2: is not valid JSON"):
        open_source(str(path))


def test_only_answers_that_survive_a_crop_are_cropped(tmp_path: Path) -> None:
    boxes = [{"label": "x", "xyxy": [45, 35, 55, 45]}]
    path = write(tmp_path, {"boxes": boxes}, {"answer": "left", "boxes": boxes}, {"boxes": boxes})
    source = open_source(str(path), crops=True)
    cropped = [source.get(0, random.Random(i)) for i in range(30)]
    assert sum(s.images[0].crop is not None for s in cropped) > 20
    assert all(len(s.boxes) == 1 for s in cropped)
    assert source.get(1, random.Random(0)) == source.samples[1]
    assert open_source(str(path)).get(0, random.Random(0)) == source.samples[0]


def painted(boxes: list[tuple[int, int, int, int]], crop: tuple[int, int, int, int] | None = None) -> Sample:
    width, height = (100, 80) if crop is None else (crop[2] - crop[0], crop[3] - crop[1])
    annotations = tuple(BoxAnnotation(f"b{i}", tuple(map(float, b)), source="expert") for i, b in enumerate(boxes))  # type: ignore[arg-type]
    return Sample("s", "grounding", (ImageRef("a.png", width, height, crop),), (), annotations, Answer("boxes"))


CORNERS = st.tuples(st.integers(0, 90), st.integers(0, 70), st.integers(2, 30), st.integers(2, 30)).map(
    lambda t: (t[0], t[1], min(t[0] + t[2], 100), min(t[1] + t[3], 80))
)


@given(st.lists(CORNERS, min_size=1, max_size=4), st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_after_a_crop_a_box_still_covers_its_pixels(boxes: list[tuple[int, int, int, int]], seed: int) -> None:
    """Paint each box, cut the picture, and look where the paint is."""
    given_sample = painted(boxes)
    cropped = random_square_crop(random_square_crop(given_sample, random.Random(seed)), random.Random(seed + 1))
    reference = cropped.images[0]
    assert reference.crop is not None
    assert reference.size == (reference.crop[2] - reference.crop[0], reference.crop[3] - reference.crop[1])
    for box in cropped.boxes:
        assert box.source == "expert"
        original = boxes[int(box.label[1:])]
        canvas = np.zeros((80, 100, 3), dtype=np.uint8)
        canvas[original[1] : original[3], original[0] : original[2]] = 1
        rows, columns = np.nonzero(crop_pixels(canvas, reference.crop)[..., 0])
        assert box.xyxy_px == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_a_box_that_is_mostly_gone_is_dropped() -> None:
    cropped = crop_sample(painted([(0, 0, 10, 10), (0, 20, 10, 30)]), (7, 0, 57, 50))
    assert [box.label for box in cropped.boxes] == ["b0", "b1"]
    assert crop_sample(painted([(0, 0, 10, 10)]), (8, 0, 58, 50)).boxes == ()


def test_turns_name_the_boxes_that_stay_by_their_new_numbers() -> None:
    """Box 0 is cut away; the question gave box 1, the answer box 2 and box 0."""
    three = painted([(0, 0, 10, 10), (60, 60, 70, 70), (70, 60, 80, 70)])
    turns = (
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "boxes", "boxes": [1]}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": [{"type": "boxes", "boxes": [2, 0]}]},
        {"role": "user", "content": "And now?"},
    )
    cropped = crop_sample(dataclasses.replace(three, messages=turns), (50, 50, 90, 80))
    assert [box.label for box in cropped.boxes] == ["b1", "b2"] and cropped.sought == (1,)
    assert [part.get("boxes") for part in cropped.messages[0]["content"]] == [None, [0], None]
    assert cropped.messages[1]["content"] == [{"type": "boxes", "boxes": [1]}] and cropped.messages[2] == turns[2]
    given = cropped.boxes_at(cropped.messages[0]["content"][1]["boxes"])
    assert given is not None and given.labels == ("b1",) and given.xyxy.tolist() == [[10, 10, 20, 20]]


def test_a_crop_cannot_be_left_again() -> None:
    """What a crop hides would come back without its boxes."""
    once = crop_sample(painted([(0, 0, 10, 10)]), (20, 20, 60, 60))
    assert crop_sample(once, (5, 5, 40, 40)).images[0].crop == (25, 25, 60, 60)
    with pytest.raises(ValueError, match=r"s: window \[-1, 0, 40, 40\] leaves the crop of 40x40 px"):
        crop_sample(once, (-1, 0, 40, 40))


def test_boxes_of_other_images_stay() -> None:
    one = painted([(0, 0, 10, 10)])
    other = BoxAnnotation("far", (0.0, 0.0, 5.0, 5.0), image=1)
    both = Sample("s", "grounding", (*one.images, ImageRef("b.png", 9, 9)), (), (*one.boxes, other), Answer("boxes"))
    cropped = crop_sample(both, (50, 40, 90, 80))
    assert [box.label for box in cropped.boxes] == ["far"]
    assert cropped.images[1] == both.images[1]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_windows_are_square_and_inside_or_around(width: int, height: int, seed: int) -> None:
    x0, y0, x1, y1 = random_square_window((width, height), random.Random(seed))
    side = x1 - x0
    assert side == y1 - y0
    assert 0.55 * min(width, height) - 1 <= side <= 1.1 * min(width, height) + 1
    for low, high, length in ((x0, x1, width), (y0, y1, height)):
        assert (low >= 0 and high <= length) or (low <= 0 and high >= length)


def test_windows_reach_every_side_and_both_sizes() -> None:
    windows = [random_square_window((100, 100), random.Random(i)) for i in range(300)]
    sides = [w[2] - w[0] for w in windows]
    assert min(sides) < 60
    assert max(sides) > 105
    assert any(w[0] == 0 for w in windows)
    assert any(w[2] >= 100 for w in windows)


def test_an_overhanging_window_leaves_the_image_on_every_edge_by_that_share_at_most() -> None:
    windows = [random_square_window((100, 80), random.Random(i), overhang=0.25) for i in range(400)]
    reach = {"left": 0.0, "top": 0.0, "right": 0.0, "bottom": 0.0}
    for x0, y0, x1, y1 in windows:
        side = x1 - x0
        if side <= 80:
            out = {"left": -x0, "top": -y0, "right": x1 - 100, "bottom": y1 - 80}
            assert max(out.values()) <= 0.25 * side + 1
            reach = {edge: max(reach[edge], out[edge] / side) for edge in reach}
    assert min(reach.values()) > 0.15


def test_an_image_of_unknown_size_cannot_be_cropped() -> None:
    blind = Sample("s", "grounding", (ImageRef("a.png"),))
    with pytest.raises(ValueError, match=r"s: the size of a\.png must be known to crop it"):
        random_square_crop(blind, random.Random(0))
    text = Sample("t", "text")
    assert random_square_crop(text, random.Random(0)) is text

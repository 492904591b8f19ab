"""Samples of several images: records, what is given and what is sought, names in the prompt, answers that say where."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmo_core.batch import PatchSpec
from medmo_core.boxes import Boxes, ImageBoxes
from medmo_core.data.document import Document
from medmo_core.data.processor import Processor
from medmo_core.data.records.faults import RecordError
from medmo_core.data.records.read import sample_from_json
from medmo_core.data.records.sample import Sample
from medmo_core.data.sample_text import SampleText
from medmo_core.data.sources.jsonl import load_jsonl
from medmo_core.data.text.chat_template import name_images
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.profile import MEDMO, QWEN3_VL, CheckpointProfile

QWEN = PatchSpec(patch_size=16, merge_size=2, temporal_patch_size=2)
IMAGES = [{"path": "prior.png", "width": 128, "height": 96}, {"path": "current.png", "width": 64, "height": 64}]
OLD = {"label": "nodule", "xyxy": [32, 24, 64, 48], "image": 0}
NEW = {"label": "nodule", "xyxy": [16, 32, 32, 48], "image": 1}
embedded = cache(Tokenizer.embedded)


def sample(**fields: Any) -> Sample:
    return sample_from_json({"id": "s", "images": IMAGES, "question": "Where?", "boxes": [OLD, NEW], **fields})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with a dark prior picture and a bright current one."""
    for image, value in zip(IMAGES, (10, 200), strict=True):
        pixels = np.full((image["height"], image["width"], 3), value, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / image["path"])
    return tmp_path


def processor(root: Path, profile: CheckpointProfile = QWEN3_VL) -> Processor:
    return Processor(embedded(), {"qwen3_vl": QWEN}, profile, min_pixels=32 * 32, max_pixels=256 * 256, root=root)


def decoded(item: Document) -> str:
    text = embedded().decode(item.input_ids.tolist(), skip_special=False)
    for name in ("<|vision_start|>", "<|vision_end|>"):
        text = text.replace(name, "")
    return text.replace("<|image_pad|>", "#")


def test_boxes_keep_their_image_and_its_size() -> None:
    truth = sample().truth_boxes()
    assert isinstance(truth, ImageBoxes)
    assert (truth.images, truth.sizes) == ((0, 1), ((128, 96), (64, 64)))
    assert truth.xyxy.tolist() == [[32, 24, 64, 48], [16, 32, 32, 48]]
    one = sample(images=IMAGES[:1], boxes=[OLD]).truth_boxes()
    assert isinstance(one, Boxes) and one.size == (128, 96)


def test_boxes_of_one_among_several_images_are_boxes_of_several() -> None:
    truth = sample(boxes=[OLD]).truth_boxes()
    assert isinstance(truth, ImageBoxes) and len(truth.per_image[1]) == 0


def test_which_image_a_box_without_image_lies_in() -> None:
    assert sample(boxes=[OLD]).grounding_image == 0  # all boxes lie there
    assert sample(boxes=[NEW]).grounding_image == 1
    assert sample().grounding_image == 1  # the last, where they lie in several
    assert sample(boxes=[]).grounding_image == 1  # or nowhere
    stated = sample(answer={"type": "boxes", "image": 0})
    assert stated.grounding_image == 0 and stated.image_size() == (128, 96)
    truth = stated.truth_boxes()
    assert isinstance(truth, ImageBoxes) and truth.default == 0


ASKED = [
    {"type": "image"},
    {"type": "image"},
    {"type": "text", "text": "Image 1 shows a nodule at "},
    {"type": "boxes", "boxes": [0]},
    {"type": "text", "text": ". Where is it in image 2?"},
]
TRACKED: dict[str, Any] = {
    "question": None,
    "messages": [{"role": "user", "content": ASKED}],
    "answer": {"type": "boxes", "image": 1},
    "task": "grounding",
}


def tracked(**fields: Any) -> Sample:
    record = {"id": "s", "images": IMAGES, "boxes": [OLD, NEW], **TRACKED, **fields}
    return sample_from_json({key: value for key, value in record.items() if value is not None})


def test_a_box_that_the_question_gives_is_not_sought(root: Path) -> None:
    truth = tracked().truth_boxes()
    assert isinstance(truth, ImageBoxes) and truth.images == (1,) and tracked().sought == (1,)
    answer = '[{"image": 2, "bbox_2d": [250, 500, 500, 750], "label": "nodule"}]'
    assert SampleText(QWEN3_VL).target_text(tracked()) == answer
    text = decoded(processor(root).encode(tracked(), for_generation=True))
    given = '[{"image": 1, "bbox_2d": [250, 250, 500, 500], "label": "nodule"}]'
    assert f"Image 1 shows a nodule at {given}. Where is it in image 2?" in text
    assert (
        SampleText(QWEN3_VL).question_text(tracked()) == f"Image 1 shows a nodule at {given}. Where is it in image 2?"
    )


def test_a_given_box_is_written_in_samples_of_one_image_too(root: Path) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "What is at "}, {"type": "boxes", "boxes": [0]}]
    record = {"images": IMAGES[:1], "boxes": [OLD], "messages": [{"role": "user", "content": content}]}
    described = sample_from_json({"id": "s", "task": "vqa", "answer": "a cyst", **record})
    text = decoded(processor(root).encode(described))
    assert 'What is at [{"bbox_2d": [250, 250, 500, 500], "label": "nodule"}]<|im_end|>' in text


def test_records_write_back_as_they_were_read() -> None:
    assert sample_from_json(json.loads(json.dumps(tracked().to_json()))) == tracked()


def test_several_images_are_named(root: Path) -> None:
    text = decoded(processor(root).encode(sample()))
    assert text.startswith(f"<|im_start|>user\nImage 1: {'#' * 12}Image 2: {'#' * 4}Where?<|im_end|>")
    assert '{"image": 1, "bbox_2d": [250, 250, 500, 500], "label": "nodule"}' in text


def test_so_are_they_where_no_box_is_asked_for_and_a_single_image_is_not(root: Path) -> None:
    compared = sample(boxes=None, answer="It grew.")
    assert f"Image 1: {'#' * 12}Image 2: {'#' * 4}Where?" in decoded(processor(root).encode(compared))
    single = sample(images=IMAGES[:1], boxes=[{"label": "nodule", "xyxy": [32, 24, 64, 48]}])
    text = decoded(processor(root).encode(single))
    assert "Image 1" not in text and '"image"' not in text


def test_an_authors_own_names_are_kept_and_numbers_go_on_over_turns() -> None:
    image, text = {"type": "image"}, {"type": "text", "text": "Compare image 1:"}
    first = {"role": "user", "content": [text, image, image]}
    second = {"role": "user", "content": [image, {"type": "text", "text": "And this?"}]}
    turns = [first, {"role": "assistant", "content": "Grown."}, second]
    named = name_images(turns)
    words = [[p.get("text", "#") for p in turn["content"]] if turn["role"] == "user" else [] for turn in named]
    assert words == [["Compare image 1:", "#", "Image 2: ", "#"], [], ["Image 3: ", "#", "And this?"]]
    assert first["content"] == [text, image, image]


def test_turns_of_a_dialogue_keep_the_names(root: Path) -> None:
    pairs = []
    for number, asked in enumerate(("Prior?", "Current?")):
        images = [] if number else [{"type": "image"}, {"type": "image"}]
        pairs.append({"role": "user", "content": [*images, {"type": "text", "text": asked}]})
        pairs.append({"role": "assistant", "content": [{"type": "boxes", "boxes": [number]}]})
    dialogue = sample_from_json(
        {"id": "d", "task": "dialogue", "images": IMAGES, "boxes": [OLD, NEW], "messages": pairs}
    )
    texts = [decoded(item) for item in processor(root).encode_turns(dialogue)]
    assert [f"Image 1: {'#' * 12}Image 2: {'#' * 4}{asked}" in text for asked, text in
            zip(("Prior?", "Current?"), texts, strict=True)] == [True, True]  # fmt: skip
    assert ['"image": 1' in text for text in texts] == [True, False]
    assert ['"image": 2' in text for text in texts] == [False, True]


def test_patches_follow_the_order_of_the_images(root: Path) -> None:
    item = processor(root).encode(sample())
    assert item.image_grid_thw["qwen3_vl"].tolist() == [[1, 6, 8], [1, 4, 4]]
    values = item.patches["qwen3_vl"]
    assert set(np.unique(values[:48])) == {10} and set(np.unique(values[48:])) == {200}


def test_a_grammar_that_cannot_say_which_image_names_itself_and_the_sample(root: Path) -> None:
    bare = CheckpointProfile(grammar="medmo_bare_list")
    unlabelled = [{**OLD, "label": "x"}, {**NEW, "label": "x"}]
    with pytest.raises(ValueError, match=r"s: box 0: grammar 'medmo_bare_list' has no place for labels"):
        SampleText(bare).target_text(sample(boxes=unlabelled))
    assert SampleText(MEDMO).target_text(sample()) == (
        "Image 1: nodule <box>[[250, 250, 500, 500]]</box>\nImage 2: nodule <box>[[250, 500, 500, 750]]</box>"
    )


FAULTS = [
    ({"boxes": [{**NEW, "image": 2}]}, "boxes[0].image", "is 2; expected an index below 2; fix: count from 0"),
    ({"boxes": [OLD, {**NEW, "xyxy": [16, 32, 80, 48]}]}, "boxes[1].xyxy_px", "outside its image of 64x64"),
    ({"boxes": [{**NEW, "image": "second"}]}, "boxes[0].image", "expected a whole number from 0"),
    ({"answer": {"type": "boxes", "image": 2}}, "answer.image", "is 2; expected an index below 2"),
    (
        {"answer": {"type": "open", "value": "x", "image": 1}, "task": "vqa"},
        "answer.image",
        "is given with an answer of type open",
    ),
    (
        {"question": None, "messages": [{"role": "user", "content": [*ASKED[:2], {"type": "boxes", "boxes": [2]}]}]},
        "messages",
        "a turn names box 2; expected an index below 2",
    ),
]


@pytest.mark.parametrize(("change", "field", "problem"), FAULTS, ids=[field for _, field, _ in FAULTS])
def test_a_fault_names_file_line_and_field(root: Path, change: dict[str, Any], field: str, problem: str) -> None:
    record = {"id": "s", "images": IMAGES, "question": "Where?", "boxes": [OLD, NEW], **change}
    path = root / "my.jsonl"
    path.write_text("\n" + json.dumps({key: value for key, value in record.items() if value is not None}))
    with pytest.raises(RecordError) as caught:
        load_jsonl(path)
    assert str(caught.value).startswith(f"{path}:2: {field}: ")
    assert problem in str(caught.value)


def test_images_without_stated_sizes_are_measured(root: Path) -> None:
    short = {"images": ["prior.png", "current.png"], "question": "What is new?", "boxes": [NEW]}
    path = root / "short.jsonl"
    path.write_text(json.dumps(short))
    (read,) = load_jsonl(path)
    truth = read.truth_boxes()
    assert read.task == "grounding" and isinstance(truth, ImageBoxes) and truth.sizes == ((128, 96), (64, 64))
    unread = sample_from_json(short)
    with pytest.raises(ValueError, match="the size of prior.png is not stated"):
        unread.truth_boxes()


def test_a_processor_that_forgets_the_images_is_noticed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medmo_core.data import processor as process

    monkeypatch.setattr(process, "name_images", list)
    with pytest.raises(AssertionError):
        test_several_images_are_named(root)

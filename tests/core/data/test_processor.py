"""From samples to documents: answers in the profile's words, one token grid for all encoders, nothing ever cut."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medmo_core.batch import IGNORE_INDEX, PatchSpec
from medmo_core.data import picture_cache
from medmo_core.data.document import Document
from medmo_core.data.images.patches import unpatchify
from medmo_core.data.processor import Processor, TooLong
from medmo_core.data.records.read import sample_from_json
from medmo_core.data.records.sample import Answer, ImageRef, Outlines, Sample
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.data.tones import random_tone
from medmo_core.profile import MEDMO, QWEN3_VL, CheckpointProfile

QWEN = PatchSpec(patch_size=16, merge_size=2, temporal_patch_size=2)
DINO = PatchSpec(patch_size=14, merge_size=2)
embedded = cache(Tokenizer.embedded)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with pictures whose red channel is x and green channel is y."""
    for name, (width, height) in {"a.png": (128, 96), "b.png": (64, 64), "long.png": (640, 1)}.items():
        y, x = np.mgrid[:height, :width]
        pixels = np.stack([x, y, np.full_like(x, 7)], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def processor(root: Path, profile: CheckpointProfile = QWEN3_VL, **options: Any) -> Processor:
    settings: dict[str, Any] = {"min_pixels": 32 * 32, "max_pixels": 256 * 256, "root": root, **options}
    return Processor(embedded(), settings.pop("specs", {"qwen3_vl": QWEN}), profile, **settings)


def sample(**fields: Any) -> Sample:
    return sample_from_json({"id": "s", "image": "a.png", "question": "Where?", "answer": "here", **fields})


def decoded(item: Document) -> str:
    return embedded().decode(item.input_ids, skip_special=False)


def learned(item: Document) -> str:
    assert item.labels is not None
    return embedded().decode(item.labels[item.labels != IGNORE_INDEX], skip_special=False)


GROUNDED = {
    "answer": None,
    "image": {"path": "a.png", "width": 128, "height": 96},
    "boxes": [{"label": "liver", "xyxy": [32, 24, 64, 96]}],
}


def test_a_document_holds_the_chat_the_patches_and_the_positions(root: Path) -> None:
    item = processor(root).encode(sample())
    pads = "<|image_pad|>" * 12
    asked = f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>Where?<|im_end|>\n"
    assert decoded(item) == f"{asked}<|im_start|>assistant\nhere<|im_end|>\n"
    assert learned(item) == "here<|im_end|>"
    assert item.patches["qwen3_vl"].shape == (48, 768)
    assert item.patches["qwen3_vl"].dtype == np.uint8
    assert item.image_grid_thw["qwen3_vl"].tolist() == [[1, 6, 8]]
    is_image = item.input_ids == embedded().image_token_id
    assert item.position_ids.shape == (3, len(item.input_ids))
    start = int(np.flatnonzero(is_image)[0])
    grid = [[start, start + y, start + x] for y in range(3) for x in range(4)]
    assert item.position_ids[:, is_image].T.tolist() == grid
    assert item.position_ids[:, -1].tolist() == [start + 4 + (len(item.input_ids) - start - 13)] * 3


def test_for_generation_the_answer_is_left_out(root: Path) -> None:
    told = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for given in (sample(), Sample("t", "text", messages=tuple(told))):
        item = processor(root).encode(given, for_generation=True)
        assert item.labels is None
        assert decoded(item).endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert "Hello" not in decoded(item)
        assert ">assistant\nhere" not in decoded(item)


def test_text_alone_needs_no_image(root: Path) -> None:
    item = processor(root).encode(sample_from_json({"question": "CT?", "answer": "scan"}))
    assert (item.patches, item.image_grid_thw) == ({}, {})
    assert item.position_ids.tolist() == [list(range(len(item.input_ids)))] * 3


def test_several_images_of_different_sizes(root: Path) -> None:
    record = {"images": ["b.png", "a.png"], "question": "Compare.", "answer": "same"}
    item = processor(root).encode(sample_from_json(record))
    assert item.image_grid_thw["qwen3_vl"].tolist() == [[1, 4, 4], [1, 6, 8]]
    assert len(item.patches["qwen3_vl"]) == 16 + 48
    first = unpatchify(item.patches["qwen3_vl"][:16], (1, 4, 4), QWEN)
    assert np.array_equal(first, np.asarray(Image.open(root / "b.png")))


def test_every_encoder_gets_the_same_token_grid(root: Path) -> None:
    item = processor(root, specs={"qwen3_vl": QWEN, "dinov2": DINO}).encode(sample())
    assert item.image_grid_thw["dinov2"].tolist() == [[1, 6, 8]]
    assert item.patches["dinov2"].shape == (48, 3 * 14 * 14)
    picture = unpatchify(item.patches["dinov2"], (1, 6, 8), DINO)
    assert picture.shape == (84, 112, 3)
    assert np.abs(picture[:, 56, 0].astype(int) - 64).max() <= 1  # the middle column of the picture is x = 64


def test_a_crop_is_what_the_model_sees_and_boxes_refer_to(root: Path) -> None:
    image = {"path": "a.png", "crop": [64, 32, 128, 96]}
    given = sample(image=image, answer=None, boxes=[{"label": "x", "xyxy": [0, 0, 32, 64]}])
    item = processor(root).encode(given)
    picture = unpatchify(item.patches["qwen3_vl"], (1, 4, 4), QWEN)
    assert picture[0, 0].tolist() == [64, 32, 7]
    assert picture[-1, -1].tolist() == [127, 95, 7]
    assert learned(item) == '[{"bbox_2d": [0, 0, 500, 1000], "label": "x"}]<|im_end|>'


def test_a_tone_changes_the_pixels_and_nothing_else(root: Path) -> None:
    plain, toned = sample(), replace(sample(), tone=11)
    first, second = processor(root).encode(plain), processor(root).encode(toned)
    assert (first.input_ids == second.input_ids).all() and (first.position_ids == second.position_ids).all()
    name = next(iter(first.patches))
    assert first.patches[name].shape == second.patches[name].shape
    assert (first.patches[name] != second.patches[name]).any()
    again = processor(root).encode(toned)
    assert (again.patches[name] == second.patches[name]).all()
    assert "tone" not in toned.to_json()


def test_boxes_in_a_turn_are_written_as_the_profile_says(root: Path) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Here: "}, {"type": "boxes", "boxes": [0]}]},
    ]
    given = sample_from_json({"id": "s", "images": [GROUNDED["image"]], "messages": turns, "boxes": GROUNDED["boxes"]})
    assert learned(processor(root, MEDMO).encode(given)) == "Here: liver <box>[[250, 250, 500, 1000]]</box><|im_end|>"


def test_the_profiles_system_prompt_is_put_first_unless_the_sample_has_one(root: Path) -> None:
    strict = CheckpointProfile(system_prompt="Be exact.")
    assert decoded(processor(root, strict).encode(sample())).startswith("<|im_start|>system\nBe exact.<|im_end|>\n")
    own = processor(root, strict).encode(sample(system="Be kind."))
    assert decoded(own).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")
    assert "exact" not in decoded(own)


def test_an_over_long_sample_is_refused_whole(root: Path) -> None:
    length = len(processor(root).encode(sample()).input_ids)
    assert len(processor(root, max_tokens=length).encode(sample()).input_ids) == length
    with pytest.raises(TooLong, match=rf"^s: {length} tokens, over the limit of {length - 1}; it is left out"):
        processor(root, max_tokens=length - 1).encode(sample())


def test_the_samples_own_root_goes_before_the_processors(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    given = sample()
    with pytest.raises(ValueError, match=r"s: .*a\.png: no such file"):
        processor(elsewhere).encode(given)
    owned = Sample(given.id, given.task, given.images, given.messages, answer=given.answer, root=root)
    assert len(processor(elsewhere).encode(owned).patches["qwen3_vl"]) == 48


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "missing.png"}, r"^s: .*missing\.png: no such file"),
        ({"image": "../a.png"}, r"^s: '\.\./a\.png' leaves the data root"),
        ({"image": "long.png"}, r"^s: an image of 640x1 px is 640 times longer than wide"),
        ({"image": {"path": "a.png", "width": 96, "height": 128}}, r"^s: a\.png is 128x96 px, the record says 96x128"),
        ({"image": {"path": "a.png", "crop": [500, 0, 600, 50]}}, r"^s: crop .* lies outside the picture"),
    ],
)
def test_an_unusable_image_names_sample_and_reason(root: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(root).encode(sample(**fields))


@pytest.mark.parametrize("num_images", [0, 2])
def test_images_and_placeholders_must_agree(root: Path, num_images: int) -> None:
    """A sample made in code has not been through the record's own check."""
    given = Sample("s", "vqa", (ImageRef("a.png"),) * num_images, sample().messages, answer=Answer("open", "x"))
    with pytest.raises(ValueError, match=rf"^s: the messages hold 1 image placeholder\(s\), {num_images} image\(s\)"):
        processor(root).encode(given)


def test_answers_that_cannot_be_written(root: Path) -> None:
    question = ({"role": "user", "content": "?"},)
    with pytest.raises(ValueError, match="s: nothing to learn"):
        processor(root).encode(Sample("s", "text", messages=question))
    with pytest.raises(ValueError, match=r"s: answer\.value is missing"):
        processor(root).encode(Sample("s", "text", messages=question, answer=Answer("open")))
    labelled = sample(**{**GROUNDED, "boxes": [{"label": "a\nb", "xyxy": [0, 0, 1, 1]}]})
    with pytest.raises(ValueError, match=r"s: box 0: grammar 'medmo_box' cannot write label"):
        processor(root, MEDMO).encode(labelled)


def test_a_picture_is_decoded_once_for_all_its_crops(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = picture_cache.load_whole
    monkeypatch.setattr(picture_cache, "load_whole", lambda ref, root: opened.append(ref.path) or original(ref, root))
    busy = processor(root, cache_bytes=128 * 96 * 3 + 100)
    crops = [sample(image={"path": "a.png", "crop": [x, 0, x + 64, 64]}) for x in (0, 32)]
    seen = [busy.encode(crop).patches["qwen3_vl"][0, 0] for crop in crops]
    assert (opened, seen) == (["a.png"], [0, 32])
    busy.encode(sample(image="b.png"))  # both do not fit: the older picture goes
    busy.encode(crops[0])
    assert opened == ["a.png", "b.png", "a.png"]


def test_documents_about_the_same_images_hold_the_same_patches(root: Path) -> None:
    first = sample(id="first")
    others = [sample(id="b", image="b.png"), sample(id="crop", image={"path": "a.png", "crop": [0, 0, 64, 64]})]
    samples = [first, *others, sample(id="again", question="What?"), replace(first, id="toned", tone=1)]
    for_generation = processor(root).encode_all(samples, for_generation=True)
    assert all(item.labels is None for item in for_generation)
    together = processor(root).encode_all(samples)
    for found, asked in zip(together, samples, strict=True):
        alone = processor(root).encode(asked)
        assert found.sample is asked and learned(found) == learned(alone) and decoded(found) == decoded(alone)
        assert np.array_equal(found.patches["qwen3_vl"], alone.patches["qwen3_vl"])
        assert np.array_equal(found.position_ids, alone.position_ids)
    same = [item.patches["qwen3_vl"] is together[0].patches["qwen3_vl"] for item in together]
    assert same == [True, False, False, True, False]


def test_encoding_a_file_of_own_data_end_to_end(root: Path) -> None:
    from medmo_core.data.sources.jsonl import load_jsonl

    records = [
        {"image": "a.png", "question": "Is it dark?", "answer": "yes"},
        {"image": "a.png", "question": "Locate it.", "boxes": [{"label": "it", "xyxy": [32, 24, 64, 96]}]},
    ]
    (root / "my.jsonl").write_text("\n".join(json.dumps(r) for r in records))
    items = [processor(root).encode(s) for s in load_jsonl(root / "my.jsonl")]
    assert [learned(i) for i in items] == [
        "yes<|im_end|>",
        '[{"bbox_2d": [250, 250, 500, 1000], "label": "it"}]<|im_end|>',
    ]


def test_outlines_are_cropped_with_their_picture_and_only_tones_show_them(root: Path) -> None:
    outlines = np.zeros((96, 128), dtype=np.uint8)
    outlines[:, 64:] = 3
    Image.fromarray(outlines).save(root / "outlines.png")
    Image.new("RGB", (128, 96), (120, 120, 120)).save(root / "grey.png")
    maker = processor(root)

    def shown(tone: int | None, **fields: Any) -> NDArray[np.uint8]:
        image = ImageRef("grey.png", 64, 64, crop=(32, 16, 96, 80), **fields)
        document = maker.encode(replace(sample(), images=(image,), tone=tone))
        return unpatchify(document.patches["qwen3_vl"], tuple(document.image_grid_thw["qwen3_vl"][0]), QWEN)

    assert (shown(None, outlines=Outlines("outlines.png")) == shown(None)).all()
    seed = next(s for s in range(100) if abs(random_tone(s).shifts[3]) > 60 and random_tone(s).noise < 3)
    plain, moved = (shown(seed, **fields).astype(int) for fields in ({}, {"outlines": Outlines("outlines.png")}))
    change = np.abs(moved - plain)[..., 0].mean(0)
    assert change[:31].max() == 0 and change[33:].min() > 5, "the crop's middle is where the structure begins"


def test_outlines_of_another_size_are_refused(root: Path) -> None:
    Image.new("L", (64, 64)).save(root / "outlines.png")
    image = ImageRef("a.png", 128, 96, outlines=Outlines("outlines.png"))
    with pytest.raises(ValueError, match=r"outlines\.png and a\.png are 64x64 and 128x96 px, expected the same size"):
        processor(root).encode(replace(sample(), images=(image,), tone=1))


def test_a_record_neither_states_outlines_nor_is_written_with_them() -> None:
    with pytest.raises(ValueError, match="outlines"):
        sample(image={"path": "a.png", "width": 128, "height": 96, "outlines": "../../secret.png"})
    image = ImageRef("a.png", 128, 96, outlines=Outlines("outlines.png"))
    assert "outlines" not in json.dumps(replace(sample(), images=(image,), tone=4).to_json())


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA", "1", "I;16"])
def test_label_maps_that_would_lose_their_values_are_refused(root: Path, mode: str) -> None:
    Image.new(mode, (128, 96)).save(root / "outlines.png")
    image = ImageRef("a.png", 128, 96, outlines=Outlines("outlines.png"))
    with pytest.raises(ValueError, match=rf"s: outlines\.png: a label map of mode {mode}, expected 8-bit grey"):
        processor(root).encode(replace(sample(), images=(image,), tone=1))


@pytest.mark.parametrize("path", ["../outlines.png", "/etc/outlines.png", "missing.png"])
def test_label_maps_stay_in_the_data_root(root: Path, path: str) -> None:
    Image.new("L", (128, 96)).save(root.parent / "outlines.png")
    image = ImageRef("a.png", 128, 96, outlines=Outlines(path))
    with pytest.raises(ValueError, match=r"leaves the data root|no such file"):
        processor(root).encode(replace(sample(), images=(image,), tone=1))


@pytest.mark.parametrize(
    "row", [(300, 1.0, 1.0), (3.5, 1.0, 1.0), (-1, 1.0, 1.0), (0, 1.0, 1.0), (3, float("nan"), 1.0), (3, 1.0)]
)
def test_uptake_of_what_is_no_structure_is_refused(row: Any) -> None:
    with pytest.raises(ValueError, match=r"outlines m\.png: uptake holds .*, expected \(a value from 1 to 255"):
        Outlines("m.png", (row,))


def test_samples_that_differ_in_outlines_alone_do_not_share_their_pixels(root: Path) -> None:
    outlines = np.full((96, 128), 3, dtype=np.uint8)
    Image.fromarray(outlines).save(root / "outlines.png")
    plain, known = ImageRef("a.png", 128, 96), ImageRef("a.png", 128, 96, outlines=Outlines("outlines.png"))
    seed = next(s for s in range(100) if abs(random_tone(s).shifts[3]) > 60)
    maker = processor(root)
    samples = [replace(sample(), images=(image,), tone=seed) for image in (plain, known)]
    together = maker.encode_all(samples)
    for document, one in zip(together, samples, strict=True):
        assert (document.patches["qwen3_vl"] == maker.encode(one).patches["qwen3_vl"]).all()
    assert (together[0].patches["qwen3_vl"] != together[1].patches["qwen3_vl"]).any()

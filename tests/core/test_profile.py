"""The checkpoint profile: what it refuses, how it travels, what happens without one."""

import json
import logging
from pathlib import Path

import pytest

from medmo_core.boxes import GRAMMARS, Boxes, parse_boxes, print_boxes
from medmo_core.profile import MEDMO, MEDMO_CANVAS768, PROFILES, QWEN3_VL, CheckpointProfile


@pytest.mark.parametrize("profile", [*PROFILES.values(), CheckpointProfile("unit", "qwen3_vl_json", None, "You see.")])
def test_it_survives_the_disk(tmp_path: Path, profile: CheckpointProfile) -> None:
    assert profile.save(tmp_path).name == "medmo_profile.json"
    loaded = CheckpointProfile.load(tmp_path)
    assert loaded == profile
    assert loaded.canvas is None or isinstance(loaded.canvas, tuple)


def test_an_official_folder_is_taken_for_qwen_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert CheckpointProfile.load(tmp_path / "MedMO-8B") == QWEN3_VL
    assert "has no medmo_profile.json: assuming Qwen3-VL's boxes (frame norm1000, grammar qwen3_vl_json)" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "medmo_profile.json: not valid JSON"),
        ("[]", "expected a JSON object, found list"),
        ('{"frames": "pixel"}', "unknown field frames; a profile has frame, grammar, canvas, system_prompt"),
        ('{"frame": "norm999"}', "frame is 'norm999', expected one of pixel, norm1000, unit"),
        ('{"grammar": "xml"}', "grammar is 'xml', expected one of .*qwen3_vl_json"),
        ('{"canvas": [768, 768]}', "canvas .* needs frame 'pixel'"),
        ('{"frame": "pixel", "canvas": [768]}', r"canvas is \[768\], expected \[width, height\]"),
        ('{"frame": "pixel", "canvas": [768, 0]}', "two positive whole numbers"),
        ('{"frame": "pixel", "canvas": 768}', "canvas is 768"),
        ('{"frame": ["pixel"]}', "frame is"),
        ('{"grammar": ["medmo_box"]}', "grammar is"),
        ('{"system_prompt": 3}', "system_prompt is 3, expected text or null"),
    ],
)
def test_broken_profiles_are_explained(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "medmo_profile.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        CheckpointProfile.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_every_shipped_profile_speaks_a_known_grammar_and_reads_its_own_boxes() -> None:
    image = (1536, 768)
    truth = Boxes([[192.0, 96.0, 384.0, 192.0]], "pixel", image, ("liver",))
    for profile in PROFILES.values():
        assert profile.grammar in GRAMMARS
        size = profile.text_size(image)
        text = print_boxes(truth.resize(size), profile.grammar, profile.frame)
        parsed = parse_boxes(text, size, profile.grammar, profile.frame)
        assert parsed.ok, (profile, text)
        error = (parsed.boxes.pixel().resize(image).xyxy - truth.xyxy).abs().max()
        assert error <= 1536 / 1000, (profile, text)


def test_a_canvas_is_what_the_numbers_refer_to() -> None:
    assert MEDMO_CANVAS768.text_size((1536, 512)) == (768, 768)
    assert QWEN3_VL.text_size((1536, 512)) == (1536, 512)
    assert MEDMO.frame == "norm1000"
    assert json.loads(json.dumps(MEDMO.to_json()))["grammar"] == "medmo_box"


@pytest.mark.parametrize(
    ("profile", "corners"), [(QWEN3_VL, [0, 250, 500, 1000]), (MEDMO_CANVAS768, [0, 192, 384, 768])]
)
def test_boxes_are_read_in_pixels_of_the_image(profile: CheckpointProfile, corners: list[int]) -> None:
    text = f'[{{"bbox_2d": {corners}, "label": "square"}}, {{"bbox_2d": [9, 9, 1, 1], "label": "reversed"}}]'
    if profile.grammar == "medmo_box":
        text = f"square <box>[{corners}]</box>\nreversed <box>[[9, 9, 1, 1]]</box>"
    parsed = profile.read_boxes(text, Boxes.empty((64, 32)))
    assert (parsed.boxes.frame, parsed.boxes.xyxy.tolist()) == ("pixel", [[0.0, 8.0, 32.0, 32.0]])
    assert (parsed.ok, parsed.grammar) == (False, profile.grammar) and "reversed" in parsed.errors[0]

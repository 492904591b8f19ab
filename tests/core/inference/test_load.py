"""Loading a checkpoint folder: what it states is taken, and what is wrong with it is said."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from medmo_core.choices import DEFAULT_MAX_PIXELS, DEFAULT_MIN_PIXELS
from medmo_core.errors import InputError
from medmo_core.inference import load
from medmo_core.inference.load import read_pixel_limits
from medmo_core.models.official.folder import find_folder
from medmo_core.models.official.names import PREPROCESSOR_FILE
from medmo_core.models.official.write import IMAGE_PIXELS
from medmo_core.profile import CheckpointProfile


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


def test_a_kit_is_ready_to_answer(copied: Path) -> None:
    CheckpointProfile(grammar="medmo_box").save(copied)
    before = torch.random.get_rng_state()
    kit = load(copied, device="cpu")
    assert not kit.model.training and kit.model.head_weight.dtype is torch.float32
    assert kit.profile.grammar == "medmo_box" and kit.processor.text.profile is kit.profile
    assert torch.equal(torch.random.get_rng_state(), before)  # loading draws nothing
    assert load(copied, device="cpu", dtype="bfloat16").model.head_weight.dtype is torch.bfloat16


def test_image_areas_are_the_checkpoints_unless_limited(copied: Path) -> None:
    sizes = {"size": {"shortest_edge": 4096, "longest_edge": 9216}}
    (copied / PREPROCESSOR_FILE).write_text(json.dumps(sizes))
    processor = load(copied, device="cpu").processor
    assert (processor.min_pixels, processor.max_pixels) == (4096, 9216)
    processor = load(copied, device="cpu", max_pixels=1024).processor
    assert (processor.min_pixels, processor.max_pixels) == (1024, 1024)
    with pytest.raises(InputError, match="max_pixels is 0"):
        load(copied, device="cpu", max_pixels=0)


def test_the_default_areas_are_those_of_the_official_layout() -> None:
    assert {"shortest_edge": DEFAULT_MIN_PIXELS, "longest_edge": DEFAULT_MAX_PIXELS} == IMAGE_PIXELS


@pytest.mark.parametrize("text", ["{", "[]", '{"size": 3}', '{"size": {"shortest_edge": -1}}', '{"min_pixels": "x"}'])
def test_an_unusable_image_size_is_explained(tmp_path: Path, text: str) -> None:
    (tmp_path / PREPROCESSOR_FILE).write_text(text)
    with pytest.raises(InputError, match=rf"{PREPROCESSOR_FILE}: no readable image size"):
        read_pixel_limits(tmp_path)


def test_a_run_means_its_final_model(tmp_path: Path) -> None:
    (tmp_path / "run/final").mkdir(parents=True)
    assert find_folder(tmp_path / "run") == tmp_path / "run/final"
    (tmp_path / "unfinished/checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="medmo export --run"):
        find_folder(tmp_path / "unfinished")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint .*; it holds runs: load .*run/final"):
        find_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no checkpoint .*; name the folder that holds config.json"):
        find_folder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such checkpoint folder"):
        load(tmp_path / "nowhere", device="cpu")


def test_a_tokenizer_of_another_model_is_refused(copied: Path) -> None:
    path = copied / "tokenizer.json"
    values = json.loads(path.read_text())
    last = max(token["id"] for token in values["added_tokens"])
    values["added_tokens"].append(values["added_tokens"][-1] | {"id": last + 1, "content": "<|one too many|>"})
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"has \d+ tokens, but the model has only \d+ embeddings"):
        load(copied, device="cpu")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "gpu"}, "device is 'gpu', expected auto"),
        ({"device": "meta"}, "device is 'meta'; a model answers on cpu or cuda"),
        ({"device": "cpu", "dtype": "int8"}, "dtype is 'int8'"),
        ({"device": "cpu", "max_pixels": "9"}, "max_pixels is '9', expected an image area"),
    ],
)
def test_a_wrong_device_or_type_is_explained(checkpoint: Path, options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(checkpoint, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines without CUDA")
def test_cuda_is_asked_for_where_there_is_none(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="shows no CUDA device"):
        load(checkpoint, device="cuda")


def test_a_folder_without_a_profile_says_what_is_assumed(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copied / "medmo_profile.json").unlink()
    with caplog.at_level(logging.WARNING):
        load(copied, device="cpu")
    assert "assuming Qwen3-VL's boxes" in caplog.text

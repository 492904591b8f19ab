"""The checkpoint in the package: found by its name, small, safe, and able to answer with a box."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from medmo_core.datasets.embedded.facts import EMBEDDED_ROOT
from medmo_core.demo import checkpoint
from medmo_core.demo.checkpoint import CARD, DEMO_NAME, FILES, FIRST_IMAGE, FIRST_QUESTION, HELD_OUT, WEIGHTS
from medmo_core.inference import Kit, ask, load
from medmo_core.models.medmo import MedMO
from medmo_core.models.official.folder import PICKLE_SUFFIXES, find_folder
from medmo_core.models.official.write import save_checkpoint


@pytest.fixture(scope="module")
def demo() -> Kit:
    """The checkpoint, loaded by its name."""
    return load(DEMO_NAME, device="cpu")


def test_the_first_answer_has_a_box_that_can_be_read(demo: Kit) -> None:
    answer = ask(demo, EMBEDDED_ROOT / FIRST_IMAGE, FIRST_QUESTION)
    assert answer.finished and not answer.errors
    assert any("liver" in label for label in answer.boxes.labels)
    width, height = answer.images[0].size
    for x1, y1, x2, y2 in answer.boxes.xyxy.tolist():
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


def test_every_door_knows_the_name(demo: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands where the caller works; what begins with a dot is a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEMO_NAME).mkdir()
    assert demo.base == find_folder(DEMO_NAME) == FILES / WEIGHTS
    assert torch.equal(MedMO.from_pretrained(DEMO_NAME).head_weight, demo.model.head_weight)
    for path in (f"./{DEMO_NAME}", Path(DEMO_NAME)):
        with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
            load(path, device="cpu")


@pytest.mark.parametrize("name", ["medmo-tiny-dem", "medmo-tiny-demo/", "MedMO-tiny-demo"])
def test_a_name_that_is_nearly_its_own_is_unknown(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint folder"):
        load(name, device="cpu")


def test_it_says_once_that_it_is_a_toy_and_asks_no_network() -> None:
    """In a fresh process, in which every socket is refused."""
    script = f"""
import socket
def refuse(*_, **__):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from medmo_core.inference import load
load({DEMO_NAME!r}, device="cpu"), load({DEMO_NAME!r}, device="cpu")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    number = json.loads((FILES / HELD_OUT).read_text(encoding="utf-8"))["num_training_images"]
    told = f"medmo-tiny-demo is a toy, trained on {number} images: research use only"
    assert done.stdout == "" and done.stderr.count("toy") == 1 and told in done.stderr.splitlines()


def test_an_installation_without_it_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FILES", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"reinstall medmo, or train it with: python -m tools\.demo_checkpoint"):
        load(DEMO_NAME, device="cpu")


def test_it_is_small_and_stored_as_safetensors_of_the_stated_type() -> None:
    paths = [path for path in FILES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in paths) <= 10_000_000
    assert not [path.name for path in paths if path.suffix in PICKLE_SUFFIXES]
    assert {p.suffix for p in paths} == {".safetensors", ".json", ".jinja", ".md"}
    with safe_open(FILES / WEIGHTS / "model.safetensors", framework="pt") as file:
        dtypes = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - a handle is no mapping
    stated = json.loads((FILES / HELD_OUT).read_text(encoding="utf-8"))["dtype"]
    assert {str(dtype) for dtype in dtypes} == {f"torch.{stated}"}
    assert json.loads((FILES / WEIGHTS / "config.json").read_text(encoding="utf-8"))["dtype"] == stated


def test_what_is_trained_from_it_takes_no_card_over(demo: Kit, tmp_path: Path) -> None:
    """The card of other weights names figures that are not theirs."""
    tensors, config = demo.model.state_dict(), demo.model.config.to_dict()
    folder = save_checkpoint(tmp_path / "trained", tensors, config=config, tokenizer=demo.tokenizer, base=demo.base)
    written = {path.name for path in folder.iterdir()}
    assert "chat_template.jinja" in written and not written & {CARD, HELD_OUT}

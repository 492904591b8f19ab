"""What a saved model takes along: its chat template as transformers reads it, and the files of its base model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from medmo_core.data.text.chat_template import encode_chat, render_chat
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.inference.load import load
from medmo_core.models.official.carried import chat_template
from medmo_recipes import align
from medmo_recipes.commands.official_export import export
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.model.kit import load_kit

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Is there an effusion?"}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": [IMAGE, {"type": "text", "text": " Where? "}, IMAGE]},
        {"role": "assistant", "content": [{"type": "text", "text": "\n\nLeft, {{ 7 }} & <b>right</b>.\n"}]},
        {"role": "user", "content": [VIDEO, {"type": "text", "text": "And é now?"}]},
    ],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": "   "}, {"role": "user", "content": "?"}],
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step from a folder that holds more than a model."""
    folder = tmp_path_factory.mktemp("carried")
    first = CONFIGS["debug_align"]().change(train={"steps": 1, "device": "cpu", "out_dir": str(folder / "first")})
    assert align.run(first)
    base = folder / "base"
    shutil.copytree(folder / "first" / "final", base)
    settings = {"do_sample": True, "temperature": 0.7, "eos_token_id": 3, "repetition_penalty": 1.05}
    (base / "generation_config.json").write_text(json.dumps(settings))
    (base / "LICENSE").write_text("theirs")
    (base / "vocab.json").write_text("{}")
    (base / "pytorch_model.bin").write_bytes(b"weights")
    (base / "model-00001-of-00002.safetensors").write_bytes(b"weights")
    (base / "original").mkdir()
    (base / ".cache").write_text("hub")
    second = first.change(model={"init": str(base)}, train={"out_dir": str(folder / "run"), "export_every": 1})
    assert align.run(second)
    export(folder / "run" / "checkpoints" / "step-000001", folder / "exported")
    export(folder / "run" / "final", folder / "again")
    return folder


@pytest.mark.parametrize("name", ["first/final", "run/final", "run/exports/step-000001", "exported", "again"])
def test_transformers_applies_our_chat_template_token_for_token(run: Path, name: str) -> None:
    theirs, ours = transformers.AutoTokenizer.from_pretrained(run / name), Tokenizer.from_checkpoint(run / name)
    for chat in CHATS:
        for open_turn in (False, True):
            text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=open_turn)
            assert text == render_chat(chat, open_turn)
            if "video" in str(chat):  # a video's times are ours to write
                chat = [message for message in chat if "video" not in str(message)]
            images = [1] * str(chat).count("'image'")
            ids = theirs.apply_chat_template(chat, add_generation_prompt=open_turn, return_dict=False)
            assert list(ids) == encode_chat(ours, chat, images, open_turn).input_ids


@pytest.mark.parametrize("name", ["run/final", "run/exports/step-000001", "exported", "again"])
def test_what_the_base_model_brought_is_taken_along_and_its_weights_are_not(run: Path, name: str) -> None:
    folder = run / name
    assert (folder / "LICENSE").read_text() == "theirs" and (folder / "vocab.json").exists()
    found = {path.name for path in folder.iterdir()}
    assert not found & {"pytorch_model.bin", "model-00001-of-00002.safetensors", "original", ".cache"}
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert (generation.do_sample, generation.temperature, generation.repetition_penalty) == (True, 0.7, 1.05)
    tokenizer = load(folder, device="cpu").tokenizer
    assert generation.eos_token_id == [tokenizer.im_end_id, tokenizer.endoftext_id]  # the ids are the model's own


def test_a_runs_folder_means_its_final_model_in_training_too(run: Path) -> None:
    config = CONFIGS["debug_align"]()
    kits = [load_kit(config.change(model={"init": str(run / name)}), "cpu") for name in ("first", "first/final")]
    assert kits[0].base == kits[1].base == run / "first/final"
    weights = [dict(kit.model.named_parameters()) for kit in kits]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "bad",
    [
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}],
        [{"role": "assistant", "content": [IMAGE]}],
        [{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
    ],
)
def test_what_the_template_has_no_place_for_is_refused(run: Path, bad: list[dict[str, Any]]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "run/final")
    with pytest.raises(Exception, match="expected user or assistant|has no place"):
        tokenizer.apply_chat_template(bad, tokenize=False)


@pytest.mark.parametrize("where", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_template_is_found_wherever_a_checkpoint_keeps_it(tmp_path: Path, where: str) -> None:
    assert chat_template(tmp_path) is None
    (tmp_path / where).write_text("T" if where.endswith("jinja") else json.dumps({"chat_template": "T"}))
    assert chat_template(tmp_path) == "T"

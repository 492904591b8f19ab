"""An exported model reads back bit for bit, has exactly the official names, and leaves nothing else behind.

From one process and from shards of two; tied (no lm_head in the file, one tensor in memory) and untied.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medmo_core.data.packing import pack
from medmo_core.inference.kit import Kit
from medmo_core.models import MedMO
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.checkpoints.official import write_final
from medmo_recipes.training.distributed.sharding import prepare
from medmo_recipes.training.distributed.world import World, connect
from medmo_recipes.training.model.kit import load_kit

transformers = pytest.importorskip("transformers")

FILES = {
    "model.safetensors", "config.json", "generation_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "medmo_profile.json",
}  # fmt: skip
RUN = CONFIGS["debug_align"]()


@pytest.fixture(scope="module")
def kit() -> Kit:
    return load_kit(RUN, "cpu")


@torch.no_grad()
def check(folder: Path, model: MedMO, toy: Any) -> None:
    """Check an exported folder against the model that was exported."""
    tied = model.config.tie_word_embeddings
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert {path.name for path in folder.iterdir()} <= FILES
    with torch.device("meta"):
        config = transformers.Qwen3VLConfig(**model.config.to_dict())
        official = set(transformers.Qwen3VLForConditionalGeneration(config).state_dict())
    written = load_file(folder / "model.safetensors").keys()
    assert written == (official - {"lm_head.weight"} if tied else official)
    assert all(name.startswith(("model.visual.", "model.language_model.", "lm_head.")) for name in written)

    own = dict(model.named_parameters())
    again = MedMO.from_pretrained(folder, dtype=torch.float64)
    batch = pack([toy.extend(toy.prompt("scan", [(4, 8), (6, 4)]), 3, 4)])
    assert torch.equal(again(batch), model(batch))
    theirs, loading_info = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float64, output_loading_info=True
    )
    assert not any(loading_info.values()), loading_info
    read: dict[str, Tensor] = dict(theirs.named_parameters())
    assert read.keys() == own.keys()
    assert all(torch.equal(read[name], own[name]) for name in own)
    assert (theirs.lm_head.weight is theirs.model.language_model.embed_tokens.weight) == tied


def export(kit: Kit, folder: Path, *, shard: bool) -> None:
    """Write a model as a run does at its end; called in every process."""
    if not shard:
        write_final(folder, kit, World(0, 1, torch.device("cpu")), init="")
        return
    with connect("cpu", shard=True) as world:
        prepare(kit.model, RUN.change(parallel={"shard": True}), world)
        write_final(folder, kit, world, init="")


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_export_reads_back(
    kit: Kit, toy: Any, tmp_path: Path, run_processes: Callable[..., Any], tied: bool, shard: bool
) -> None:
    model = toy.model(tied=tied)
    folder = tmp_path / "exported"
    run_processes(lambda: export(replace(kit, model=model), folder, shard=shard), 2 if shard else 1)
    check(folder, model, toy)


@pytest.mark.parametrize("violation", ["renamed", "head", "one bit", "leftover folder"])
def test_a_wrong_export_is_noticed(kit: Kit, toy: Any, tmp_path: Path, violation: str) -> None:
    model, folder = toy.model(), tmp_path / "exported"
    export(replace(kit, model=model), folder, shard=False)
    tensors = load_file(folder / "model.safetensors")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    if violation == "renamed":
        tensors[name.replace("language_model", "text_model")] = tensors.pop(name)
    elif violation == "head":
        tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
    elif violation == "one bit":
        tensors[name].view(torch.int64)[0, 0] ^= 1
    else:
        (tmp_path / "sharded").mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AssertionError):
        check(folder, model, toy)

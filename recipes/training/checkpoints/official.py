"""Write a run's model in the official layout, from whole copies or shards, at the end or on the way."""

from pathlib import Path

from torch import Tensor

from medmo_core.inference.kit import Kit
from medmo_core.models.config import PRESETS
from medmo_core.models.official.folder import names_folder
from medmo_core.models.official.write import save_checkpoint

from ..distributed.shards import whole_tensors
from ..distributed.world import World
from ..model.lora import has_adapters, merged_tensors, save_adapter


def write_final(folder: Path, kit: Kit, world: World, *, init: str) -> Path:
    """Write a model in the official layout, whole, with tokenizer and profile; every process calls this.

    Args:
        folder: made, or replaced at the very end. Adapters are added into the weights, and also written by themselves,
            in peft's layout, to adapter/ beside it.
        kit: model, tokenizer and profile.
        world: the main process writes.
        init: name that the model was loaded by; adapters name it as the model they belong to, or its folder; of a
            preset, whose random weights no one else has, they name nothing.

    Returns:
        The folder.
    """
    tensors = whole_tensors(kit.model, world)
    with world.together(f"writing {folder}"):
        if world.is_main and has_adapters(kit.model):
            # A run's folder is one to us alone; others find the model where its files are. A preset is found nowhere.
            base = None if init in PRESETS else init if kit.base is None or not names_folder(init) else str(kit.base)
            save_adapter(folder.with_name("adapter"), kit.model, base, tensors)
            tensors = merged_tensors(kit.model, tensors)
        if world.is_main:
            write_official(folder, tensors, kit)
    return folder


def official_tensors(kit: Kit, world: World) -> dict[str, Tensor]:
    """Return every weight, whole, on the host of the main process (empty elsewhere); every process calls this.

    Sharded weights are put together one after the other, so that no device ever holds a second model.
    """
    tensors = whole_tensors(kit.model, world)
    return merged_tensors(kit.model, tensors) if world.is_main and has_adapters(kit.model) else tensors


def write_official(folder: Path, tensors: dict[str, Tensor], kit: Kit) -> None:
    """Write weights with all that belongs to them, what their base model brought too; one process calls this."""
    save_checkpoint(
        folder,
        tensors,
        config=kit.model.config.to_dict(),
        tokenizer=kit.tokenizer,
        profile=kit.profile,
        min_pixels=kit.processor.min_pixels,
        max_pixels=kit.processor.max_pixels,
        base=kit.base,
    )

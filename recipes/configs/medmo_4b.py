"""MedMO-4B: as 8B, unpublished. No 4B setting is public; every value here is the 8B one (see `medmo_8b.py`).

    torchrun --nproc-per-node 8 -m medmo_recipes.align --config medmo_4b_align \\
        data.sources=captions.jsonl,vqa.jsonl data.root=/data
    python -m medmo_recipes.align --config medmo_4b_align parallel.shard=false optim.kind=adamw_bf16

The second line is for one GPU of 80 GB: weights, gradients and optimiser state take 8 bytes a parameter, 33 GiB,
activations come on top. docs/training.md has the launch lines for 1, 8 and 64 GPUs.
"""

from ..settings.run_config import RunConfig
from .medmo_8b import medmo_8b_align, medmo_8b_instruct, medmo_8b_instruct_highres, medmo_8b_reinforce


def _as_8b(config: RunConfig, name: str) -> RunConfig:
    """Copy an 8B run to the 4B model: as 8B, unpublished."""
    return config.change(name=name, model={"init": "Qwen/Qwen3-VL-4B-Instruct"}, train={"out_dir": f"runs/{name}"})


def medmo_4b_align() -> RunConfig:
    """Stage 1, as 8B, unpublished."""
    return _as_8b(medmo_8b_align(), "medmo_4b_align")


def medmo_4b_instruct_highres() -> RunConfig:
    """Stage 2, as 8B, unpublished.

    torchrun --nproc-per-node 8 -m medmo_recipes.instruct --config medmo_4b_instruct_highres \\
        model.init=runs/medmo_4b_align/final
    """
    return _as_8b(medmo_8b_instruct_highres(), "medmo_4b_instruct_highres")


def medmo_4b_instruct() -> RunConfig:
    """Stage 3, as 8B, unpublished.

    torchrun --nproc-per-node 8 -m medmo_recipes.instruct --config medmo_4b_instruct \\
        model.init=runs/medmo_4b_instruct_highres/final
    """
    return _as_8b(medmo_8b_instruct(), "medmo_4b_instruct")


def medmo_4b_reinforce() -> RunConfig:
    """Stage 4, as 8B, unpublished.

    torchrun --nproc-per-node 8 -m medmo_recipes.reinforce --config medmo_4b_reinforce \\
        model.init=runs/medmo_4b_instruct/final
    """
    return _as_8b(medmo_8b_reinforce(), "medmo_4b_reinforce")

"""Write the launch lines of docs/training.md: every recipe on 1, 8 and 64 GPUs, with memory and speed as estimated.

    python -m tools.recipe_table --write     # after a change of a config, of the memory estimate or of the costs
    python -m tools.recipe_table             # exit status 1 where the page says something else

Nothing is run: sizes come from meta tensors, memory from `recipes/training/sizing/memory.py`, and tokens per second
from the useful operations of an assumed document at an assumed share of the device's peak
(`recipes/training/monitoring/flops.py`).
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.report.page_section import settle
from medmo_core.models.medmo import MedMO
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.command_line import apply_overrides
from medmo_recipes.settings.run_config import RunConfig
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.model.trainable import choose_trainable
from medmo_recipes.training.monitoring.flops import PEAK_FLOPS, BatchWork, UsefulFlops
from medmo_recipes.training.monitoring.log import count
from medmo_recipes.training.sizing.activations import BatchShape
from medmo_recipes.training.sizing.memory import estimate

PAGE = Path(__file__).resolve().parents[1] / "docs/training.md"
RECIPES = tuple(f"medmo_{size}b_{stage}" for size in (4, 8) for stage in ("align", "instruct_highres", "instruct"))
TEXT_TOKENS, LEARNED = 300, 150
"""Of an assumed document, beside one image of the recipe's largest size; half of the text is the answer."""
MFU = 0.45
GPU = "H200"
NODE = 8
"""GPUs of a machine."""
AFTER = {"instruct_highres": "align", "instruct": "instruct_highres"}
"""Stage -> the stage whose final/ folder it begins with."""


@dataclass(frozen=True)
class Variant:
    """A recipe on some GPUs."""

    name: str
    num_gpus: int

    @property
    def settings(self) -> list[str]:
        """What differs from the config."""
        if self.num_gpus == 1:  # few large passes: each adds its gradients in bfloat16
            micro_batch = 16 if "highres" in self.name else 32
            return ["parallel.shard=false", "optim.kind=adamw_bf16", f"train.micro_batch={micro_batch}"]
        nodes = self.num_gpus // NODE
        return [f"parallel.replicas={nodes}"] if nodes > 1 else []

    @property
    def config(self) -> RunConfig:
        """The run."""
        return apply_overrides(CONFIGS[self.name](), self.settings)

    @property
    def command(self) -> str:
        """The whole launch line."""
        nodes = max(1, self.num_gpus // NODE)
        where = f"--nproc-per-node {min(self.num_gpus, NODE)}"
        launch = f"--standalone {where}" if nodes == 1 else (
            f"--nnodes {nodes} {where} --rdzv-backend c10d --rdzv-endpoint $HEAD:29500")  # fmt: skip
        size, stage = self.name.removeprefix("medmo_").split("_", 1)
        words = [f"torchrun {launch} -m medmo_recipes.{self.config.stage} --config {self.name}"]
        if stage in AFTER:
            words.append(f"model.init=runs/medmo_{size}_{AFTER[stage]}/final")
        return " ".join([*words, *self.settings])


@dataclass(frozen=True)
class Estimate:
    """Memory and speed expected of a variant; nothing of it is measured."""

    gigabytes: float
    tokens_per_s: float
    samples_per_s: float
    hours: float


@cache
def model_of(name: str) -> MedMO:
    """Build a recipe's model on meta tensors, with what trains chosen."""
    config = CONFIGS[name]()
    model = load_kit(config, "meta").model
    choose_trainable(config, model)
    return model


def estimate_variant(variant: Variant) -> Estimate:
    """Estimate memory per GPU, speed of all GPUs, and hours of the whole run."""
    config = variant.config
    first = variant.name[: len("medmo_4b")] + "_align"
    assert config.model == CONFIGS[first]().model, "the stages of one size are expected to train one model"
    model = model_of(first)
    side = round(config.data.max_pixels**0.5 / model.encoder.specs[model.primary_encoder].token_px)
    work = BatchWork.planned(model, grid=(side, side), text_tokens=TEXT_TOKENS, learned=LEARNED)
    samples = MFU * PEAK_FLOPS[GPU] * variant.num_gpus / UsefulFlops(model).of(work)
    share = -(-config.train.docs_per_step // variant.num_gpus)
    shape = BatchShape.planned(model, pixels=config.data.max_pixels, text_tokens=TEXT_TOKENS, learned=LEARNED)
    memory = estimate(
        model,
        config,
        shape.scaled(shape.tokens * min(config.train.micro_batch, share)),
        processes=variant.num_gpus,
        passes=-(-share // config.train.micro_batch),
        device="cuda",
    )
    hours = config.train.steps * config.train.docs_per_step / samples / 3600
    return Estimate(memory.total / 1e9, samples * work.tokens, samples, hours)


def section() -> str:
    """Return the generated part of the page."""
    peak = f"{PEAK_FLOPS[GPU] / 1e12:.0f} TFLOP/s"
    lines = [
        "ESTIMATED until measured. Memory is that of one GPU (`--dry-run` shows its parts), with AdamW in fp32 where",
        "sharded and `adamw_bf16` on one GPU. Speed is that of all GPUs together at "
        f"{100 * MFU:.0f} % of {peak} per {GPU} (or H100 SXM),",
        f"for documents of one image of the recipe's largest size and {TEXT_TOKENS} text tokens, {LEARNED} of them "
        "learned; exchanges between GPUs are",
        "assumed to hide behind the work.",
        "",
        "| recipe | GPUs | memory per GPU | tokens/s | samples/s | whole run |",
        "|---|---|---|---|---|---|",
    ]
    commands = []
    for name in RECIPES:
        commands.append(f"# {name}")
        for num_gpus in (1, NODE, 64):
            variant = Variant(name, num_gpus)
            found = estimate_variant(variant)
            hours = f"{found.hours:.1f} h" if found.hours < 100 else f"{found.hours / 24:.1f} days"
            lines.append(f"| `{name}` | {num_gpus} | {found.gigabytes:.0f} GB | {count(found.tokens_per_s)} | "
                         f"{found.samples_per_s:.3g} | {hours} |")  # fmt: skip
            commands.append(variant.command)
        commands.append("")
    return "\n".join([*lines, "", "```bash", *commands[:-1], "```"])


def main(argv: Sequence[str] | None = None) -> int:
    """Compare or write; returns 1 where the page says something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the lines into the page")
    arguments = parser.parse_args(argv)
    fix = "python -m tools.recipe_table --write"
    return settle(PAGE, "tools.recipe_table", section(), write=arguments.write, fix=fix)


if __name__ == "__main__":
    raise SystemExit(main())

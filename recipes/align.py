"""Stage 1, align: teach the decoder to read what the vision encoder writes.

    python -m medmo_recipes.align --config tiny_align
    torchrun --nproc-per-node 8 -m medmo_recipes.align --config medmo_8b_align train.steps=1000

Next-token cross-entropy on captions and other image text. What trains is `model.trainable`: everything, as MedMO's
released scripts do, or the projector alone, which is how a new encoder (`model.encoder=siglip2`) is joined to a decoder
that already speaks. With "projector" the stage checks by name and by count that nothing else trains.

Left out: contrastive losses (MedMO has none), pipeline, tensor and context parallelism, data sets read over a network.

Exit codes: 0 at the end, 2 for a mistake or a bad step (told in one line), 143 when asked to stop (SIGTERM, Ctrl-C):
the step is finished and saved, and train.resume=true continues.
"""

from collections.abc import Sequence
from pathlib import Path

from medmo_core.batch import Batch
from medmo_core.losses import TokenLosses

from .settings.run_config import RunConfig
from .training.distributed.torchrun import leave
from .training.distributed.world import connect, say
from .training.loading.sources import load_mixture
from .training.loop.fit import fit, new_loader
from .training.loop.launch import launch
from .training.loop.run import open_run
from .training.model.kit import load_kit
from .training.model.trainable import assert_only_projector, choose_trainable


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage as the command line says; returns the exit status."""
    return launch(argv, stage="align", run=run, about=__doc__)


def run(config: RunConfig) -> bool:
    """Train; returns whether the last step was reached (False: asked to stop, and saved)."""
    train, parallel = config.train, config.parallel
    with connect(
        train.device, num_threads=train.num_threads, shard=parallel.shard, timeout_s=parallel.timeout_s
    ) as world:
        # The model.
        kit = load_kit(config, world.device)
        model = kit.model

        # What trains.
        trainable = choose_trainable(model, config.model.trainable, config.lora)
        if config.model.trainable == ("projector",) and not config.lora.rank:
            assert_only_projector(model, trainable)
        say(world, trainable.describe())

        # What feeds.
        index = Path(train.out_dir) / "index"
        mixture = load_mixture(config.data, seed=train.seed, index_folder=index)
        held_out = None
        if train.eval_every:
            held_out = load_mixture(config.data, seed=train.seed, split=train.eval_split, index_folder=index)

        # What is minimised: the cross-entropy of the labelled tokens, summed; `fit` divides by their global number.
        def minimise(batch: Batch) -> TokenLosses:
            return model.token_losses(batch, z_loss=train.z_loss)

        with open_run(config, world, kit) as opened:
            loader = new_loader(opened, mixture.draw)
            held_out_loader = None if held_out is None else new_loader(opened, held_out.draw, held_out=True)
            finished = fit(opened, loader, minimise, held_out=held_out_loader)
            if finished:
                opened.finish()
            return finished


if __name__ == "__main__":
    leave(main())

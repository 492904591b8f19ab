"""Stage 1, align: teach the decoder to read what the vision encoder writes.

    python -m medmo_recipes.align --config tiny_align
    torchrun --nproc-per-node 8 -m medmo_recipes.align --config medmo_8b_align train.steps=1000

Next-token cross-entropy on captions and other image text. What trains is `model.trainable`: everything, as MedMO's
released scripts do, or the projector alone, which is how a new encoder (`model.encoder=siglip2`) is joined to a decoder
that already speaks. With "projector" the stage checks by name and by count that nothing else trains.

Left out: contrastive losses (MedMO has none), pipeline, tensor and context parallelism, data sets read over a network.

Exit codes: 0 at the end, 2 for a mistake or a bad step (one line on stderr), 143 when asked to stop (SIGTERM, Ctrl-C):
the step is finished and saved, and train.resume=true continues.
"""

from collections.abc import Sequence

from medmo_core.batch import Batch
from medmo_core.losses import TokenLosses

from .settings.run_config import RunConfig
from .training.distributed.torchrun import leave
from .training.distributed.world import say
from .training.loading.loader import held_out_loader, train_loader
from .training.loading.sources import load_mixtures
from .training.loop.fit import fit
from .training.loop.launch import launch
from .training.loop.run import open_run
from .training.loop.start import begin
from .training.model.kit import load_kit
from .training.model.trainable import assert_only_projector, choose_trainable


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage as the command line says; returns the exit status."""
    return launch(argv, stage="align", run=run, about=__doc__)


def run(config: RunConfig) -> bool:
    """Train; returns whether the last step was reached (False: asked to stop, and saved)."""
    with begin(config) as world:
        # What feeds.
        mixture, held_out = load_mixtures(config)

        # The model.
        kit = load_kit(config, world.device)
        model = kit.model
        coordinates = kit.processor.coordinates and kit.processor.coordinates.to(world.device)

        # What trains.
        trainable = choose_trainable(config, model)
        if config.model.trainable == ("projector",) and not config.lora.rank:
            assert_only_projector(model, trainable)
        say(world, trainable.describe())

        # What is minimised: the cross-entropy of the labelled tokens, summed; `fit` divides by their global number.
        def minimise(batch: Batch) -> TokenLosses:
            train = config.train
            return model.token_losses(
                batch, z_loss=train.z_loss, attention_weight=train.attention_weight, coordinates=coordinates
            )

        with open_run(config, world, kit) as opened:
            loader = train_loader(config, mixture.draw, kit.processor, world, opened.skipped)
            measured = None if held_out is None else held_out_loader(config, held_out.draw, kit.processor, world)
            finished = fit(opened, loader, minimise, held_out=measured)
            if finished:
                opened.finish()
            return finished


if __name__ == "__main__":
    leave(main())

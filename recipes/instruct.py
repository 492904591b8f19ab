"""Stage 2, instruct: teach the model to answer, on a weighted mixture of tasks.

    python -m medmo_recipes.instruct --config tiny_instruct
    torchrun --nproc-per-node 8 -m medmo_recipes.instruct --config medmo_8b_instruct

Next-token cross-entropy on the assistant's turns of captions, questions, reports, retrieval pairs and boxes, each drawn
with its weight in `data.sources`. Boxes are text: there is no detection head and no loss but this one (logged by
task). What the paper leaves open is settings: docs/training.md.

Left out: MedMO's unpublished auxiliary box head, weights of tasks other than how often they are drawn, pipeline, tensor
and context parallelism, data sets read over a network.

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
from .training.model.trainable import choose_trainable


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage as the command line says; returns the exit status."""
    return launch(argv, stage="instruct", run=run, about=__doc__)


def run(config: RunConfig) -> bool:
    """Train; returns whether the last step was reached (False: asked to stop, and saved)."""
    with begin(config) as world:
        # What feeds: each draw picks a source by its weight, then one of its samples.
        mixture, held_out = load_mixtures(config)
        for name, weight in config.data.sources.items():
            say(world, f"feeds {weight / sum(config.data.sources.values()):.0%} {name}")

        # The model, usually from align's final/ folder.
        kit = load_kit(config, world.device)
        model = kit.model
        coordinates = kit.processor.coordinates and kit.processor.coordinates.to(world.device)

        # What trains.
        say(world, choose_trainable(config, model).describe())

        # What is minimised: the cross-entropy of the assistant's tokens, summed; `fit` divides by their global number.
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

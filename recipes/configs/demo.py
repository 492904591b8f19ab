"""The tiny recipe with more steps, which trains the checkpoint in the repository, `medmo-tiny-demo`.

    python -m medmo_recipes.align --config demo_align
    python -m medmo_recipes.instruct --config demo_instruct model.init=runs/demo_align/final
    python -m medmo_recipes.reinforce --config demo_reinforce model.init=runs/demo_instruct/final

`python -m tools.demo_checkpoint` runs all three, measures the result and writes it into the package.
"""

from ..settings.run_config import RunConfig
from .tiny import tiny_align, tiny_instruct, tiny_reinforce


def demo_align() -> RunConfig:
    """Train on captions twice as long."""
    return longer(tiny_align(), "demo_align", steps=48)


def demo_instruct() -> RunConfig:
    """Train on all tasks about twice as long: a quarter of an hour on two CPU cores."""
    return longer(tiny_instruct(), "demo_instruct", steps=1500)


def demo_reinforce() -> RunConfig:
    """Reinforce half as long again."""
    return longer(tiny_reinforce(), "demo_reinforce", steps=120)


def longer(config: RunConfig, name: str, *, steps: int) -> RunConfig:
    """Return a config with other steps, its checkpoint written at the end."""
    return config.change(name=name, train={"steps": steps, "save_every": steps, "out_dir": f"runs/{name}"})

"""Runs that take seconds on a CPU and exist for tests and for a first look at the machinery.

python -m medmo_recipes.align --config debug_align
torchrun --nproc-per-node 2 -m medmo_recipes.instruct --config debug_instruct
"""

from ..settings.run_config import Data, Model, Optim, Rewards, Rollout, RunConfig, Train

PIXELS = 64 * 64  # four visual tokens


def debug_align() -> RunConfig:
    """Train all of a random model of some ten thousand parameters on captions."""
    return RunConfig(
        stage="align",
        name="debug_align",
        model=Model(init="debug"),
        data=Data(sources={"embedded:caption": 1.0}, min_pixels=PIXELS, max_pixels=PIXELS, max_tokens=1024),
        optim=Optim(lr=1e-3, warmup_ratio=0.25),
        train=Train(
            steps=4,
            docs_per_step=4,
            micro_batch=2,
            save_every=2,
            num_threads=1,  # the matrices are so small that a second thread only waits
            out_dir="runs/debug_align",
        ),
    )


def debug_instruct() -> RunConfig:
    """Train the same model on all five tasks, under crops."""
    tasks = ("caption", "vqa", "report", "retrieval", "grounding")
    return debug_align().change(
        stage="instruct",
        name="debug_instruct",
        data={"sources": {f"embedded:{task}": 1.0 for task in tasks}, "crops": True},
        train={"out_dir": "runs/debug_instruct"},
    )


def debug_reinforce() -> RunConfig:
    """Reinforce the same random model with every reward."""
    return debug_align().change(
        stage="reinforce",
        name="debug_reinforce",
        data={"sources": {"embedded:grounding": 1.0, "embedded:vqa": 1.0}, "crops": True},
        train={"docs_per_step": 2, "micro_batch": 4, "out_dir": "runs/debug_reinforce"},
        rollout=Rollout(num_generations=4, max_new_tokens=12),
        rewards=Rewards(weights={"answer": 1.0, "box": 1.0, "presence": 0.5, "factuality": 1.0, "format": 0.5}),
    )

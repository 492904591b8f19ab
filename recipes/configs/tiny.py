"""A 4-million-parameter model that learns to look within minutes on two CPU cores; the quickstart runs these in turn.

    python -m medmo_recipes.align --config tiny_align
    python -m medmo_recipes.instruct --config tiny_instruct model.init=runs/tiny_align/final
    python -m medmo_recipes.reinforce --config tiny_reinforce model.init=runs/tiny_instruct/final

Own data, from random weights: `medmo train instruct --data my.jsonl`.
"""

from ..settings.run_config import Data, Grpo, Model, Optim, Rewards, Rollout, RunConfig, Train

PIXELS = 192 * 192  # 36 visual tokens


def tiny_align() -> RunConfig:
    """Train all weights on captions: a random model learns nothing through its projector alone."""
    return RunConfig(
        stage="align",
        name="tiny_align",
        model=Model(init="tiny", profile="qwen3_vl_tens", bfloat16_products=True),
        data=Data(
            sources={"embedded:caption": 1.0},
            min_pixels=PIXELS,
            max_pixels=PIXELS,
            max_tokens=1024,
            crops=True,
            tones=0.9,
        ),
        optim=Optim(kind="muon", lr=9e-3, betas=(0.9, 0.95), weight_decay=0.01, warmup_ratio=0.03, min_lr_ratio=0.03),
        train=Train(steps=24, docs_per_step=12, micro_batch=12, save_every=24, out_dir="runs/tiny_align"),
    )


def tiny_instruct() -> RunConfig:
    """Train on all tasks, mostly boxes, under random crops: without them a constant box is a strong answer."""
    return tiny_align().change(
        stage="instruct",
        name="tiny_instruct",
        data={
            "sources": {"embedded:dialogue": 9.0, "embedded:vqa": 0.75},
            "independent_turns": True,
        },
        train={
            "attention_weight": 12.0,
            "coordinate_spread": 40.0,
            "steps": 780,
            "docs_per_step": 16,
            "micro_batch": 8,
            "save_every": 780,
            "out_dir": "runs/tiny_instruct",
        },
    )


def tiny_reinforce() -> RunConfig:
    """Reward boxes, answers and facts; all weights train, since with a frozen tower greedy boxes did not move.

    Each reward is scaled within its group before they are weighed: where a group disagrees on whether something is
    there, presence would otherwise drown the boxes. docs/box_reward_comparison.md compares box rewards.
    """
    return tiny_align().change(
        stage="reinforce",
        name="tiny_reinforce",
        model={"bfloat16_products": False},  # sampling one token at a time multiplies too little to win by it
        data={"sources": {"embedded:grounding": 8.0, "embedded:vqa": 1.0, "embedded:report": 1.0}},
        optim={"kind": "adamw", "lr": 1e-4, "weight_decay": 0.0, "warmup_ratio": 0.05},
        train={
            "steps": 64,
            "docs_per_step": 16,
            "micro_batch": 64,
            "save_every": 64,
            "out_dir": "runs/tiny_reinforce",
        },
        rollout=Rollout(num_generations=8, max_new_tokens=48),
        grpo=Grpo(normalise_components=True),
        rewards=Rewards(weights={"box": 1.0, "presence": 0.5, "answer": 1.0, "factuality": 1.0, "format": 0.2}),
    )

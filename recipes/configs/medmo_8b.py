"""MedMO-8B: the published settings, stage by stage. They describe MedMO's run; none has been run to its end here.

    torchrun --nproc-per-node 8 -m medmo_recipes.align --config medmo_8b_align \\
        data.sources=captions.jsonl,vqa.jsonl data.root=/data
    torchrun --nnodes 8 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m medmo_recipes.align --config medmo_8b_align

The later stages begin where `model.init=` points, the final/ folder of the stage before; left out, at the base model.

One GPU of 141 GB: `parallel.shard=false optim.kind=adamw_bf16` trains all weights, 8 bytes each for weight, gradient
and optimiser state; with fp32 state they need 16 bytes each, about 131 GiB, and are sharded over several.
docs/training.md has the launch lines for 1, 8 and 64 GPUs, with memory and expected speed, and the settings for what
the paper leaves open.

MedMO's stages and ours: 1 align, 2 instruct_highres, 3 instruct, 4 reinforce.

Sources: [P] arXiv 2602.06965 v2; [C] the training scripts its first author published in March 2026; [D] derived from
them, as said beside each value. Batches are [P] per device and [D] multiplied by their accumulation and 64 GPUs.
Optimiser betas and weight decay are unpublished: PyTorch's and TRL's defaults. Mixture weights are unpublished: equal.
"""

from ..settings.run_config import Data, Grpo, Model, Optim, Parallel, Rewards, Rollout, RunConfig, Train

SQUARE_768 = 768 * 768  # [P] 576 visual tokens
SQUARE_1280 = 1280 * 1280  # [P] 1,600 visual tokens


def medmo_8b_align() -> RunConfig:
    """Stage 1, general alignment: 18.5 M samples of captions, questions and general image text [P]."""
    return RunConfig(
        stage="align",
        name="medmo_8b_align",
        model=Model(
            init="Qwen/Qwen3-VL-8B-Instruct",  # [P] base model
            dtype="bfloat16",  # [C]
            trainable=("all",),  # [C] the scripts freeze nothing; [P] states nothing
            recompute_text="all",  # [C]
            recompute_vision="all",  # [C]
        ),
        data=Data(
            sources={"data/captions.jsonl": 1.0, "data/vqa.jsonl": 1.0},
            max_pixels=SQUARE_768,  # [P]
            max_tokens=4096,  # ours: longer samples are dropped and counted; [C] cuts nothing either
            num_workers=8,  # ours: [C] had 2 and waited for them
        ),
        optim=Optim(
            lr=1e-5,  # [P] and [C]'s table; the command in [C] says 1e-4
            schedule="cosine",  # [P]
            warmup_ratio=0.05,  # [C]
            clip_norm=1.0,  # [C]
        ),
        train=Train(
            steps=14_450,  # [D] 18.5 M samples once, at this batch
            docs_per_step=1280,  # [P] 10 x 2 accumulation, [D] x 64 GPUs
            micro_batch=20,  # ours: the share of one of 64 GPUs in one pass
            log_every=10,
            save_every=500,
            spike_ratio=4.0,  # ours: a blow-up stops with the names of the samples
            seed=42,  # [C] data seed
            out_dir="runs/medmo_8b_align",
        ),
        parallel=Parallel(shard=True),  # [C] DeepSpeed ZeRO-2
    )


def medmo_8b_instruct_highres() -> RunConfig:
    """Stage 2, high resolution and boxes: 3 M samples at 1280 x 1280 px [P]; an `instruct` run, heavy on grounding.

    torchrun --nproc-per-node 8 -m medmo_recipes.instruct --config medmo_8b_instruct_highres \\
        model.init=runs/medmo_8b_align/final
    """
    return medmo_8b_align().change(
        stage="instruct",
        name="medmo_8b_instruct_highres",
        data={
            # [P] curated captions and questions, and boxes; how many of each is unpublished. Half boxes is ours.
            "sources": {"data/captions.jsonl": 1.0, "data/vqa.jsonl": 1.0, "data/boxes.jsonl": 2.0},
            "max_pixels": SQUARE_1280,  # [P]
        },
        optim={"lr": 8e-6},  # [P]
        train={
            "steps": 2930,  # [D] 3 M samples once
            "docs_per_step": 1024,  # [P] 2 x 8 accumulation, [D] x 64 GPUs
            "micro_batch": 8,  # ours
            "out_dir": "runs/medmo_8b_instruct_highres",
        },
    )


def medmo_8b_instruct() -> RunConfig:
    """Stage 3, instruction tuning: 4.3 M captions, questions, report summaries and retrieval-style reasoning [P].

    The paper states no resolution for this stage; 768 x 768 px is ours. Its stage 2 had 1280 x 1280:
    `data.max_pixels=1638400`.

    torchrun --nproc-per-node 8 -m medmo_recipes.instruct --config medmo_8b_instruct \\
        model.init=runs/medmo_8b_instruct_highres/final
    """
    return medmo_8b_align().change(
        stage="instruct",
        name="medmo_8b_instruct",
        data={
            "sources": {
                "data/captions.jsonl": 1.0,
                "data/vqa.jsonl": 1.0,
                "data/reports.jsonl": 1.0,
                "data/retrieval.jsonl": 1.0,
                "data/boxes.jsonl": 1.0,  # ours: MedMO's list for this stage names none
            },
            "max_pixels": SQUARE_768,  # ours, unpublished
        },
        optim={"lr": 5e-6},  # [P]
        train={
            "steps": 3360,  # [D] 4.3 M samples once
            "docs_per_step": 1280,  # [P] 10 x 2 accumulation, [D] x 64 GPUs
            "out_dir": "runs/medmo_8b_instruct",
        },
    )


def medmo_8b_reinforce() -> RunConfig:
    """Stage 4, GRPO with DAPO's clip-higher and token-level loss [P]: 300 K verifiable samples.

    torchrun --nproc-per-node 8 -m medmo_recipes.reinforce --config medmo_8b_reinforce \\
        model.init=runs/medmo_8b_instruct/final
    """
    return medmo_8b_align().change(
        stage="reinforce",
        name="medmo_8b_reinforce",
        data={
            "sources": {"data/rl_vqa.jsonl": 1.0, "data/rl_boxes.jsonl": 1.0},
            "max_pixels": SQUARE_1280,  # "dynamic" [P]; the limit is ours
            "max_tokens": 4096,  # [C] prompt limit
        },
        optim={"lr": 1e-5},  # [C]
        train={
            "steps": 1170,  # [D] 300 K prompts once; unpublished
            "docs_per_step": 256,  # [C] 4 x 4 accumulation x 64 GPUs completions, in groups of 4
            "micro_batch": 4,  # [C]
            "save_every": 200,  # [C]
            "spike_ratio": 0.0,  # a policy loss lies around zero
            "out_dir": "runs/medmo_8b_reinforce",
        },
        rollout=Rollout(
            num_generations=4,  # [C]
            max_new_tokens=1024,  # [C]
            temperature=1.0,  # [C] TRL's default
        ),
        grpo=Grpo(
            loss="dapo",  # [P] token-level
            advantage="group_std",  # [C] TRL's default: divide by the group's standard deviation
            epsilon_low=0.15,  # [C]
            epsilon_high=0.25,  # [C]
            beta=0.0,  # [C] no flag, TRL's default; [P] has a KL term of unpublished weight
            mask_truncated=True,  # [C]
        ),
        # Ours. [P] names label accuracy and box reward, weights unpublished, and [C] weighs its terms equally:
        # rewards.weights=label=1,medmo_box=1,format=1 is as near as the published text comes.
        rewards=Rewards(weights={"answer": 1.0, "box": 1.0, "presence": 0.5, "format": 0.2}),
    )

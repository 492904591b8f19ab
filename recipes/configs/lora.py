"""Adapters in place of whole weights: MedMO-4B on one GPU of 24 GB.

    python -m medmo_recipes.instruct --config medmo_4b_lora data.sources=questions.jsonl,boxes.jsonl data.root=/data
    medmo train instruct --config medmo_4b_lora --data my.jsonl

Everything is frozen but adapters of rank 16 on the seven linear layers of every decoder block: 33 M of 4.47 G
parameters. Memory as `--dry-run` estimates it for CUDA with liger-kernel, not measured: 11.1 GiB for passes of 8,192
tokens (weights 8.3, adapters with their fp32 state 0.5, activations and work 2.3), beside about 1 GiB of the device's
own libraries; 13.5 GiB for passes of 16,384. Without recomputing the decoder's blocks it would be 38.6 GiB, and
"selected", which keeps the products of adapters too, saves nothing here.

runs/medmo_4b_lora/final holds the model with the adapters added in, adapter/ beside it the adapters alone, which peft
loads onto the base model.
"""

from ..settings.run_config import Data, Lora, Model, Optim, RunConfig, Train


def medmo_4b_lora() -> RunConfig:
    """Fine-tune adapters on questions, reports and boxes; all values are ours, none has been measured."""
    return RunConfig(
        stage="instruct",
        name="medmo_4b_lora",
        model=Model(init="MBZUAI/MedMO-4B", dtype="bfloat16", recompute_text="all"),
        data=Data(
            sources={"data/vqa.jsonl": 1.0, "data/reports.jsonl": 1.0, "data/boxes.jsonl": 1.0},
            max_pixels=768 * 768,
            max_tokens=4096,
            num_workers=4,
        ),
        # Adapters begin at zero and take rates ten times those of whole weights.
        optim=Optim(lr=1e-4, warmup_ratio=0.03),
        train=Train(
            steps=2000,
            tokens_per_batch=8192,
            batches_per_step=4,
            log_every=10,
            save_every=500,
            out_dir="runs/medmo_4b_lora",
        ),
        lora=Lora(rank=16, alpha=32.0, dropout=0.0, targets=("decoder",)),
    )

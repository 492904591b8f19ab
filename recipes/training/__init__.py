"""What the three stages are made of, one idea a file.

| about | files |
|---|---|
| a run and its settings | config, config_reinforce, config_types, command_line, launch, run, claim |
| model, and what trains | build, lora, float8, optional, inference |
| what feeds | data (the loader), documents, plan, workers, skipped |
| the step | fit, loss_sums, optim, adam, adam_bf16, adam_8bit |
| the step of reinforce | engine, rollout, advantages, image_features, reference, policy_figures, phases |
| processes | distributed, sharding |
| checkpoints | checkpoint, state, shard_files, shard_reader, manifest, durable, background, official |
| knowing what happens | log, meter, flops, watch, profiling, summary, dry_run, memory, activations, ledger |
| scores | scoring, sharpening |
"""

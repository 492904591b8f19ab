"""Training, measurement and model card of the checkpoint in the repository, `medmo-tiny-demo`."""

"""Training: the model of a run, its processes, its data, its optimiser, its checkpoints and its loop."""

"""Checkpoints of a run: written atomically, read again on any number of processes."""

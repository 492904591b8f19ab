"""Reports of a run while it runs and when it ends."""

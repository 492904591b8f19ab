"""The checkpoint in the repository, a toy that answers at once; `python -m tools.demo_checkpoint` writes `files/`."""

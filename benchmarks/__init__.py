"""Measurements of speed, each with its peer in the same run; `python -m benchmarks.<name>` from the repository root."""

"""Measurement: comparisons, timing, the machine, and the schema of a result."""

"""Samples of a step, decoded and packed ahead of the model."""

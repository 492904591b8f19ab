"""The model of a run and which of its parameters train."""

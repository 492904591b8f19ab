"""Samples: the record of one example, how it is read, and the faults it may have."""

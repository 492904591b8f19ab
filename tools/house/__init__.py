"""Figures of the house: the counting rules of `tools/measure_house.py`, one idea a file, standard library only."""

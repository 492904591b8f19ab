"""Comparisons of modules and of the whole model, a file each; `bench_modules.py` runs them."""

"""Comparisons of what recipes spend their time on, a file each; `bench_recipes.py` runs them."""

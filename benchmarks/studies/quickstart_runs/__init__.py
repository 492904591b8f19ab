"""Study of whether the quickstart's result holds: several seeds, each in two layouts. `__main__` says how to run it."""

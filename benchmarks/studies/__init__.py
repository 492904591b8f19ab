"""Studies of whether a recipe teaches, each planned in a committed file before its runs."""

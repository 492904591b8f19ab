"""Data sets that have a name, and the catalogue of them."""

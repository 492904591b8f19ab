"""Optimisers: the rules by which weights move."""

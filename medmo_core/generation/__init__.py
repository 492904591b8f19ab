"""Decoding with a cache: sampling, rows that are refilled, and the keys and values they share."""

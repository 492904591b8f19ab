"""A run: its folder, its step, its end."""

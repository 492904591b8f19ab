"""Calls of reward functions, ours or a user's: found, bounded in time, checked."""

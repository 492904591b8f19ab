"""Reinforcement: from prompts to completions, rewards, advantages and packed policy batches."""

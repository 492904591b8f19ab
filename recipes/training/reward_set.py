"""Former place of `medmo_recipes.reinforcement.reward_calls.reward_set`."""

from medmo_core.moved import forward

__getattr__ = forward(__name__, "medmo_recipes.reinforcement.reward_calls.reward_set")

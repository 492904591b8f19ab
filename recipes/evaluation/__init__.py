"""Evaluation: ask, score beside baselines, give intervals; needs neither trainer nor policy."""

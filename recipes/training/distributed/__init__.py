"""Processes, and how a model and its gradients lie over them."""

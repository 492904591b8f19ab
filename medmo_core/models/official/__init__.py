"""The official Qwen3-VL layout of a checkpoint folder, read and written."""

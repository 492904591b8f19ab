"""Text: the tokenizer and the chat template."""

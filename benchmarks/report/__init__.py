"""Pages and tables made from stored results."""

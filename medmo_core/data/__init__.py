"""Data on its way to a batch: records, images, sources, text, documents and packing."""

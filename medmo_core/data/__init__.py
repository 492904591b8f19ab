"""From files to batches: records, images, tokenizer, chat template, packing, mixture."""

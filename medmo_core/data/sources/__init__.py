"""Sources of samples: files of several kinds, indexed, and weighted mixtures of them."""

"""Construction of the embedded data set from pinned public packages."""

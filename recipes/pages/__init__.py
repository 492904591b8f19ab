"""Everything that writes HTML, with its templates."""

"""The schema of a run: typed sections, their checks, and the command line that sets them."""

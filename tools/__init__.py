"""Commands for maintainers: pages and tables made from code, compiled kernels, and the embedded data set."""

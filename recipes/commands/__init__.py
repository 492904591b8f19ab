"""Sub-commands of `medmo`, one a file: parse the words, call the library, print."""

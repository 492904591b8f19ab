"""Mutation tests of named modules: mutmut plants small faults one by one, and the tests of a module must notice."""

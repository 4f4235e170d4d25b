"""The command line: a file a verb, each a thin face over the library."""

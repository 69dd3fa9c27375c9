"""The commands, one a module: the docstring is help, usage and page; prepare and enter do the work."""

"""A module for each command of `crosspair`, with a function `run(options)` that returns an exit code or None for 0.

They join data, training, evaluation and search, and print what comes of it; crosspair.cli has the options.
"""

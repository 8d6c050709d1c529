"""Subcommands of `higgs-audio` that are more than a few lines. L4."""

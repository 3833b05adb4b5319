"""The command line. Importing it imports neither torch nor transformers: `--help` stays quick."""

from conflictkit.cli._app import app, main

__all__ = ["app", "main"]

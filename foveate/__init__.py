"""The command `foveate` and its page. Nothing else of the project imports this package."""

__version__ = "0.1.0"

"""Drawn scenes with questions, and a small model trained on them, which ship with the package."""

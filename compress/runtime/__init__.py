"""The attachment of a reduction to a model."""

"""Which decoder layers of a model still read its visual tokens, measured without labels."""

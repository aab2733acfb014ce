"""The defaults of the API, the command line and streams."""

METHOD = "duet"
BUDGET = 0.25
"""Share of the dense count."""
STREAM_BUDGET = 8192
"""Visual tokens of a long video."""

"""The reducers in serving engines."""

"""Videos of any length."""

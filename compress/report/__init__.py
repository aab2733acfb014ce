"""What a reduction cost, kept and dropped."""

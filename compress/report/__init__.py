"""Reports of a reduction: cost, pictures and export."""

"""What the package brings along: a drawn world, and a small model that was taught to read it."""

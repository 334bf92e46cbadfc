"""Models by name, by folder and by hub id."""

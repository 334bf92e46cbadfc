"""Changes of a deployment while it serves: what is wanted, what has to be done for it, and the doing."""

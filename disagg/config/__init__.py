"""The deployment's YAML: what may be said, how it is read, what must hold between its keys."""

"""What needs a GPU: one machine with one card, no network, a few calls of ten minutes (run.sh says which)."""

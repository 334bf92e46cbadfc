"""What prefix caches hold: as schedulers tell it, as an engine's host keeps it, as frontends are told it."""

"""Refuses what would fail later: rules over a configuration, its model and the nodes it will run on."""

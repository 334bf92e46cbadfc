"""Processes that hold an engine, and leave nothing behind: host, reaper, zygote, standby."""

"""The `disagg` command: one module a subcommand."""

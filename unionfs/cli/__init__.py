"""The commands: each parses, calls, prints and picks an exit status, and decides nothing."""

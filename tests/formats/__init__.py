"""What stands on disk: every dialect read and written, in both directions, and the commands that convert and check."""

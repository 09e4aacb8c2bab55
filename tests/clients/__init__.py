"""Programs of others that mount through ours: podman, and mount(8) with its helpers."""

"""The same random operations on our mount and on the kernel's overlayfs must give the same outcome, step by step."""

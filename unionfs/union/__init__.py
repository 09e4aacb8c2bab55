"""The merged view of a stack of layers: what is looked up, listed and changed in it. Knows nothing of FUSE."""

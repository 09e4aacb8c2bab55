"""Directory trees reached by descriptor: the layers of a stack, and the one that can be written."""

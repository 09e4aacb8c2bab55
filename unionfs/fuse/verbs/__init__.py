"""One short method an opcode, by what it is about."""

"""The XDP data plane: programs, the loader that compiles them, and what writes their maps."""

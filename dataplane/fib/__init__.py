"""The forwarding information base: facts in, rows out. Pure; see `compile.py` for the rules."""

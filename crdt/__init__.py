"""The lattice: chains of single writers, their intervals, their join.

Pure: no socket, file, clock or chance, and nothing of the other packages. See README.md beside this
file for the rules in one page.
"""

from importlib.util import find_spec


def compiled() -> bool:
    """Whether what is imported here, and all other pure code with it, was compiled by mypyc."""
    found = find_spec("crdt.chain")
    return found is not None and not str(found.origin).endswith(".py")

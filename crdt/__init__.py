"""The lattice: chains of single writers, their intervals, their join.

Pure: no socket, file, clock or chance, and nothing of the other packages. See README.md beside this
file for the rules in one page.
"""

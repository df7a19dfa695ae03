"""Graphs: their signatures, their variables, and the operations that they may have."""

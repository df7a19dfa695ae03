"""Graphs: signatures, variables, and which operations a graph may have."""

"""Modules of every operator kind, and the table of their builders."""

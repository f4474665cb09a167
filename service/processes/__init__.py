"""Entry points of the processes; each wires its parts together."""

"""The command line `graft`."""

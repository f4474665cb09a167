"""The embedded lab: starts and supervises the processes of `graft up`."""

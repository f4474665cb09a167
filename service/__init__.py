"""The control plane: API, scheduler, studies, tracking, command line."""

"""What every request passes: logging, authentication, limits."""

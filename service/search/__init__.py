"""Studies: a space, limits and objectives become runs in the ordinary queue."""

"""Surgery: replacing operators of a backbone, and undoing it."""

"""The one process that talks to Ray: claims, attempts, warm workers."""

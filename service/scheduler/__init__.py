"""The scheduler, the only process that talks to Ray: claims, attempts, warm workers."""

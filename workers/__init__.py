"""What runs on the cluster: one attempt of one run."""

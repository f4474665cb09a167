"""Code that runs on the cluster: one attempt of one run."""

"""The embedded model and data: small, real, shipped with the package."""

"""Feature networks as plug-ins: images in, features, spatial features and logits out."""

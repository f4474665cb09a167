"""FID, KID, PRDC and their intervals, from features."""

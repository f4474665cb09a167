"""FID, KID, PRDC, inception score and their intervals, computed from features."""

"""What a backbone's own operators do, measured before anything is cut out."""

"""Text-to-image testbed: scenes of colour emoji, captions in GenEval's grammar, a small PixArt."""

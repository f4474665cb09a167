"""GenEval: whether images show what their captions say, by an object detector."""

"""Studies of frozen models and finished runs."""

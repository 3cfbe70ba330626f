"""Configuration: one model per section, loading and validation, and the reference page of all keys."""

"""Configuration: one model per section, loading, and the reference page of all keys."""

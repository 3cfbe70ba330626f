"""Users' files: csv tables, Parquet, YAML and folders, and the faults that they often have."""

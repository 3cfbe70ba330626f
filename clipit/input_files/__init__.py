"""Reading of users' files (csv tables, Parquet, YAML, folders), and detection of common faults in them."""

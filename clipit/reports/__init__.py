"""Reports to snippets: reading, cleaning, splitting, filtering, and an account of what was dropped."""

"""From reports to snippets: reading, cleaning, splitting, filtering, and a summary of dropped texts."""

"""From reports to snippets: reading, cleaning, splitting, filtering, and an account of dropped texts."""

"""What is known of the sources, in memory, and what a scrape shows of it."""

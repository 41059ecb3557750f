"""What was found, for people: pages, tables, pictures."""

"""What generates: an engine in this process, or other servers behind it."""

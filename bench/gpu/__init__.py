"""What is asked of a GPU that is lent for a quarter of an hour; see bench/README.md."""

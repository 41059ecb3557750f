"""A file and overrides to one frozen, validated configuration."""

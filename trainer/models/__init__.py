"""open_clip's models: loaded with care, their towers apart, faster without other results."""

"""Shards to batches: what lies in them, read from anywhere, in an order that nothing changes."""

"""Who asked to be forgotten: rosters, names, pictures, and what is owed to them afterwards."""

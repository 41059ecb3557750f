"""One folder a run: what it writes, where it stands, how fast it goes, how it goes on."""

"""What a process minds beside its work: files, locks, signals, failures, ranks, progress."""

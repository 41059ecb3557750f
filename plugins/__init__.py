"""What a student can be taught and what can be measured; see `trainer.hookspecs`."""

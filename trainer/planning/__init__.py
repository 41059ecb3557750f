"""What a run would take, before a machine is booked."""

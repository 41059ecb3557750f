"""How a run is spread over devices: one process, DDP, FSDP2, ZeRO, and what lies in parts."""

"""How hosts that people run plug in: one file for each host, its glue alone; nothing is imported here."""

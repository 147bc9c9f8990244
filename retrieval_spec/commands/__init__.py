"""What the command line runs; nothing below may import it."""

"""One file per host: host glue only."""

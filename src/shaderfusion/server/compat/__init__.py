"""`shaderfusion serve`: a local page and HTTP API in front of one queue and one device."""

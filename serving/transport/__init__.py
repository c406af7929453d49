"""What HTTP/1.1 and HTTP/2 share: listening, and what clients may do for how long."""

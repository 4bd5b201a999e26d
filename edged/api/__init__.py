"""HTTP over Unix sockets: the client API and the admin API."""

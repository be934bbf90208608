"""From the socket to a route: connections, limits, keys, the record of a request, logs and metrics."""

"""Transport: requests within bounds, connections that are thrown away where they were cancelled, events, one loop."""

"""HTTP transport: bounded requests, connections dropped on cancellation, server-sent events, one event loop."""

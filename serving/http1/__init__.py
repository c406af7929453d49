"""HTTP/1.1 for servers on an asyncio event loop (RFC 9110, RFC 9112); httptools parses it.

What answers is the application's own function, which gets an `Exchange`; it knows nothing of REST.
"""

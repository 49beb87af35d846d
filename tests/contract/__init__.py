"""The contract of a stream, item by item, over real sockets."""

"""What watching and governing a server costs, and what it catches."""

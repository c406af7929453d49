"""Peers that run in an environment of their own: PyOD finds unusual rows, SDV draws rows.

`worker` is what runs there: it imports nothing of this project but the encoding of tables.
"""

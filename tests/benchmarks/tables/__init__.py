"""Models of mixed tables beside their peers: unusual rows, gaps and synthetic rows.

The data come from packages that carry them: `catalog` names each table, its source and its licence.
`load` reads a table, and `anomalies` makes rows unusual in three ways.
"""

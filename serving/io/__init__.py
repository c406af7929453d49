"""Read rows from files of many formats, and write arrays, tables and pictures."""

"""Read rows to train on without holding them: sources, their first pass, and what is cached."""

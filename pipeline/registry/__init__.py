"""Registered versions: register, check, compare, promote and roll back."""

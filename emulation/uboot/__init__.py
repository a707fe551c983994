"""The boot flow before Linux."""

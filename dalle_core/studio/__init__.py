"""What a server needs and a script does not. Knows no web framework."""

"""What a server needs and a script does not, in plain Python: the holder of the model, the store of files, the gate for
uploads, budgets of visitors, and `Studio`, through which the page and the endpoints ask for everything."""

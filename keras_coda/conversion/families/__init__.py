"""One module a model family; each is found by being here."""

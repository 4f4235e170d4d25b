"""How ``make docs`` makes the site of docs/, of pages elsewhere in the repository, and of docstrings."""

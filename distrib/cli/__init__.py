"""The command line ``distrib``: one module a group of commands."""

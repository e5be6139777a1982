"""Plug-ins of the tests: those inside user-mode Linux, and several processes beside each other."""

pytest_plugins = ["tests.uml.plugin", "tests.parallel"]

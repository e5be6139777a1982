"""Other ways to bring a file to many hosts, measured beside distrib."""

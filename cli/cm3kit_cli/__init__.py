"""The command line of cm3kit."""

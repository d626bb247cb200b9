"""The local server: a browser editor for pages, and an HTTP interface."""

"""The local server: an editor for pages in the browser, and an HTTP interface."""

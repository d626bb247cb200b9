"""Web pages as training data: pages to records to token shards."""
